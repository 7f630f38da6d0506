//! The one error type: what kind of fault, where, what an operator can do, and what caused it.
//!
//! [`Kind`] is the contract: its names are Lambda's `errorType`, matched exactly by Step Functions' retriers, so they
//! never change. Nothing in an error may hold a secret or a row value: its `Debug` is a public surface, because
//! `lambda_runtime` logs it.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, in the names that callers see as `errorType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    InvalidRequest,
    InvalidConfig,
    SecretDenied,
    SecretsUnavailable,
    SecretMalformed,
    BastionUnreachable,
    BastionPolicy,
    BastionHostKeyMismatch,
    BastionAuthFailed,
    DatabaseUnreachable,
    TunnelLost,
    DatabaseTls,
    DatabaseAuthFailed,
    PermissionDenied,
    SchemaChanged,
    DatabaseUnavailable,
    UnencodableValue,
    RowTooLarge,
    CursorInvalid,
    StorageDenied,
    StorageUnavailable,
    CheckpointConflict,
    NoProgress,
    Internal,
}

impl Kind {
    /// Every kind, for the test that holds template.yaml's retry list against the code.
    pub const ALL: [Self; 24] = [
        Self::InvalidRequest,
        Self::InvalidConfig,
        Self::SecretDenied,
        Self::SecretsUnavailable,
        Self::SecretMalformed,
        Self::BastionUnreachable,
        Self::BastionPolicy,
        Self::BastionHostKeyMismatch,
        Self::BastionAuthFailed,
        Self::DatabaseUnreachable,
        Self::TunnelLost,
        Self::DatabaseTls,
        Self::DatabaseAuthFailed,
        Self::PermissionDenied,
        Self::SchemaChanged,
        Self::DatabaseUnavailable,
        Self::UnencodableValue,
        Self::RowTooLarge,
        Self::CursorInvalid,
        Self::StorageDenied,
        Self::StorageUnavailable,
        Self::CheckpointConflict,
        Self::NoProgress,
        Self::Internal,
    ];

    /// The stable name: the variant as it is written.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Whether the same call can succeed later with nothing changed by a person.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::SecretsUnavailable
            | Self::BastionUnreachable
            | Self::DatabaseUnreachable
            | Self::TunnelLost
            | Self::DatabaseUnavailable
            | Self::StorageUnavailable
            | Self::CheckpointConflict
            | Self::Internal => true,
            Self::InvalidRequest
            | Self::InvalidConfig
            | Self::SecretDenied
            | Self::SecretMalformed
            | Self::BastionPolicy
            | Self::BastionHostKeyMismatch
            | Self::BastionAuthFailed
            | Self::DatabaseTls
            | Self::DatabaseAuthFailed
            | Self::PermissionDenied
            | Self::SchemaChanged
            | Self::UnencodableValue
            | Self::RowTooLarge
            | Self::CursorInvalid
            | Self::StorageDenied
            | Self::NoProgress => false,
        }
    }

    /// Whether the fault belongs to one table, so that the others can go on.
    pub(crate) fn is_of_table(self) -> bool {
        matches!(
            self,
            Self::InvalidConfig
                | Self::PermissionDenied
                | Self::SchemaChanged
                | Self::DatabaseUnavailable
                | Self::UnencodableValue
                | Self::RowTooLarge
                | Self::CursorInvalid
                | Self::NoProgress
                | Self::Internal
        )
    }
}

/// A fault with its place and its way out; see the module's rules on what it may hold.
pub struct Error {
    kind: Kind,
    context: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// `context`: lower case, no final period: what, where, numbers.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), hint: None, source: None }
    }

    /// What an operator can do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The cause, already free of secrets and row values.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    /// `context: cause: cause. Hint: what to do`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        let mut cause = self.source.as_deref().map(|source| source as &dyn StdError);
        while let Some(error) = cause {
            // Some end in a full stop of their own.
            write!(f, ": {}", error.to_string().trim_end_matches('.'))?;
            cause = error.source();
        }
        match &self.hint {
            Some(hint) => write!(f, ". Hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_line_with_its_cause_and_its_hint() {
        let error = Error::new(Kind::BastionUnreachable, "bastion:22 refused the connection")
            .with_source(std::io::Error::other("connection refused."))
            .with_hint("check bastion_host");
        assert_eq!(
            error.to_string(),
            "bastion:22 refused the connection: connection refused. Hint: check bastion_host"
        );
        assert_eq!(format!("{error:?}"), format!("BastionUnreachable: {error}"));
    }
}
