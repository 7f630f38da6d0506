//! TLS with the database, by libpq's modes: verified against the database's own name although the bytes go through a
//! tunnel, and never weaker than configured.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Stream;
use super::access::{Database, SslMode};
use crate::error::{Error, Kind};

/// What the server is asked for before the start-up message (protocol 3.0, `SSLRequest`).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// TLS over the stream or, where the mode allows it, the stream as it is.
pub(super) struct Secured {
    pub(super) stream: Stream,
    /// What ties a SCRAM login to this TLS session.
    pub(super) binding: ChannelBinding,
    pub(super) is_encrypted: bool,
}

impl Secured {
    fn plain(stream: Stream) -> Self {
        Self { stream, binding: ChannelBinding::none(), is_encrypted: false }
    }
}

/// Negotiates TLS as `database.sslmode` says.
///
/// # Errors
/// `DatabaseTls`, `SecretMalformed` for an unreadable `db_ca_certificate`.
pub(super) async fn secure(mut stream: Stream, database: &Database) -> Result<Secured, Error> {
    if database.sslmode == SslMode::Disable {
        return Ok(Secured::plain(stream));
    }
    let mut answer = [0];
    let lost = |error: std::io::Error| {
        Error::new(Kind::DatabaseUnreachable, "the database hung up before TLS").with_source(error)
    };
    stream.write_all(&SSL_REQUEST).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    stream.read_exact(&mut answer).await.map_err(lost)?;
    match (answer[0], database.sslmode) {
        (b'S', _) => handshake(stream, database).await,
        (b'N', SslMode::Prefer) => Ok(Secured::plain(stream)),
        (b'N', _) => Err(Error::new(Kind::DatabaseTls, "the database server has no TLS").with_hint(
            "turn on `ssl` there, or accept plain text inside the tunnel: \"db_sslmode\": \"disable\"",
        )),
        _ => Err(Error::new(Kind::DatabaseTls, "what answers at the database's address is not PostgreSQL")
            .with_hint("check private_host and private_port")),
    }
}

async fn handshake(stream: Stream, database: &Database) -> Result<Secured, Error> {
    let mut connector = MakeRustlsConnect::new(config(database)?);
    let connect =
        <MakeRustlsConnect as MakeTlsConnect<Stream>>::make_tls_connect(&mut connector, &database.host)
            .map_err(|error| Error::new(Kind::DatabaseTls, "tls").with_source(error))?;
    let tls = connect.connect(stream).await.map_err(|error| {
        Error::new(Kind::DatabaseTls, format!("tls with database {}", database.host)).with_source(error).with_hint(
            "check db_sslmode, db_ca_certificate (the authority's PEM; for RDS its region's bundle) and that \
             private_host is a name in the server's certificate",
        )
    })?;
    Ok(Secured { binding: tls.channel_binding(), stream: Box::new(tls), is_encrypted: true })
}

fn config(database: &Database) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let tls = |error: rustls::Error| Error::new(Kind::DatabaseTls, "tls").with_source(error);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(tls)?;
    let verifier: Arc<dyn ServerCertVerifier> = match database.sslmode {
        // As libpq: with a CA at hand, `require` checks it.
        SslMode::Require if database.ca_certificate.is_some() => {
            Arc::new(AnyName(authority(database, provider)?))
        }
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Arc::new(AnyCertificate(provider)),
        SslMode::VerifyCa => Arc::new(AnyName(authority(database, provider)?)),
        SslMode::VerifyFull => authority(database, provider)?,
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn authority(database: &Database, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    match &database.ca_certificate {
        Some(pem) => {
            let unreadable = || {
                Error::new(
                    Kind::SecretMalformed,
                    "`db_ca_certificate` of the secret is not a PEM certificate",
                )
            };
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate.map_err(|_| unreadable())?).map_err(|_| unreadable())?;
            }
            if roots.is_empty() {
                return Err(unreadable());
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|error| {
        Error::new(Kind::DatabaseTls, "no certificate authority to verify the database with")
            .with_source(error)
            .with_hint("put the authority's PEM into the secret as db_ca_certificate")
    })
}

/// `verify-ca`: the authority must be right, the name need not be.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is checked last, after the chain.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// `require` without a CA, and `prefer`: encrypted, whoever it is. The tunnel's end is already authenticated.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
