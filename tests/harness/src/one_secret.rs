//! Secrets Manager with one secret and one call, inside this process: `make try` needs no more, and so no Python.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use serde_json::{Value, json};

use crate::{REGION, http::Server, random};

const TARGET: &str = "secretsmanager.GetSecretValue";

/// A running Secrets Manager; dropping it stops it.
#[derive(Debug)]
pub struct OneSecret {
    pub endpoint: String,
    _server: Server,
}

/// Has no `Debug`: it holds the secret.
struct Kept {
    name: String,
    answer: String,
    access_key: String,
}

impl OneSecret {
    /// Serves `text`, whatever it is, as the current version of the secret `name`, to who knows the access key.
    pub async fn start(name: &str, text: &str, access_key: &str) -> OneSecret {
        let answer = json!({
            "ARN": format!("arn:aws:secretsmanager:{REGION}:123456789012:secret:{name}"),
            "Name": name,
            "SecretString": text,
            "VersionId": random::uuid(),
        });
        let kept = Arc::new(Kept {
            name: name.to_owned(),
            answer: answer.to_string(),
            access_key: access_key.to_owned(),
        });
        let server = Server::start(move |request| Arc::clone(&kept).answer(request)).await;
        OneSecret { endpoint: format!("http://{}", server.address), _server: server }
    }
}

impl Kept {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let signature = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let is_ours =
            signature.is_some_and(|text| text.contains(&format!("Credential={}/", self.access_key)));
        let is_get = request.headers().get("x-amz-target").is_some_and(|target| target == TARGET);
        let body = request.into_body().collect().await?.to_bytes();
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(if !is_ours {
            refusal("AccessDeniedException", "this secret is for the function that was started with it")
        } else if !is_get {
            refusal("InvalidRequestException", "only GetSecretValue is served here")
        } else if asked["SecretId"] != self.name.as_str() {
            refusal("ResourceNotFoundException", "there is one secret here, and it has another name")
        } else {
            reply(StatusCode::OK, self.answer.clone())
        })
    }
}

fn refusal(error_type: &str, message: &str) -> Response<Full<Bytes>> {
    reply(StatusCode::BAD_REQUEST, json!({"__type": error_type, "Message": message}).to_string())
}

fn reply(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.1");
    response.body(Full::from(body)).expect("the headers are valid")
}
