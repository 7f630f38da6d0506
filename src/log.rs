//! The log: one flat JSON object a line, which CloudWatch Logs Insights queries without unpacking.

use std::fmt::{self, Debug};

use chrono::Utc;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::text::timestamp;

/// Starts the log, as `AWS_LAMBDA_LOG_LEVEL` and `AWS_LAMBDA_LOG_FORMAT` say: `Text` gives lines for people, anything
/// else JSON. TRACE, which would log whole events, is compiled out.
pub fn init() {
    let level = std::env::var("AWS_LAMBDA_LOG_LEVEL").ok().and_then(|level| level.parse().ok());
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        // What the runtime would say about a failed invocation we say with fields.
        .with_target("lambda_runtime", LevelFilter::OFF)
        .with_target("bastion_sync", level.unwrap_or(LevelFilter::INFO));
    let log = tracing_subscriber::fmt::layer();
    if std::env::var("AWS_LAMBDA_LOG_FORMAT").is_ok_and(|format| format.eq_ignore_ascii_case("text")) {
        tracing_subscriber::registry()
            .with(log.with_target(false).with_ansi(false).with_filter(filter))
            .init();
    } else {
        tracing_subscriber::registry()
            .with(log.fmt_fields(JsonFields::new()).event_format(Flat).with_filter(filter))
            .init();
    }
}

/// `{"timestamp":…,"level":…,"message":…,` then the event's fields and those of its spans. Without a timestamp Lambda
/// files every line as INFO.
struct Flat;

impl<S, N> FormatEvent<S, N> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        for span in ctx.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let formatted = extensions.get::<FormattedFields<N>>().map(|fields| fields.fields.as_str());
            if let Some(Ok(Value::Object(of_span))) = formatted.map(serde_json::from_str) {
                fields.0.extend(of_span);
            }
        }
        let message = fields.0.remove("message").unwrap_or_default();
        let (time, level) = (timestamp(Utc::now()), event.metadata().level());
        write!(writer, r#"{{"timestamp":"{time}","level":"{level}","message":{message}"#)?;
        for (name, value) in fields.0 {
            write!(writer, ",{}:{value}", Value::String(name))?;
        }
        writeln!(writer, "}}")
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}
