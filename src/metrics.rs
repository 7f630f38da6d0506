//! Metrics, as one line of CloudWatch's embedded metric format for each sync. All names stand here.

use serde_json::json;

use crate::report::{Outcome, TableDone};

const NAMESPACE: &str = "BastionSync";

/// Writes the line to standard output, where CloudWatch finds it.
pub(crate) fn emit(outcome: &Outcome) {
    let sum = |value: fn(&TableDone) -> u64| outcome.done().map(value).sum::<u64>();
    // Without any completed window there is no lag to tell: a 0 would look fresh, and a missing value raises the alarm.
    let largest_lag = outcome.done().filter_map(|done| done.lag_seconds).reduce(f64::max);
    let largest_hold_back = outcome.done().filter_map(|done| done.hold_back_seconds).reduce(f64::max);
    let unit = |name: &str, unit: &str| json!({"Name": name, "Unit": unit});
    let function = std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
    let mut line = json!({
        "_aws": {
            "Timestamp": chrono::Utc::now().timestamp_millis(),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [["FunctionName"]],
                "Metrics": [
                    unit("RowCount", "Count"), unit("ByteCount", "Bytes"), unit("FailedTableCount", "Count"),
                    unit("LagSeconds", "Seconds"), unit("HoldBackSeconds", "Seconds"), unit("MissedRowCount", "Count"),
                ],
            }],
        },
        "FunctionName": function,
        "RowCount": sum(|done| done.rows),
        "ByteCount": sum(|done| done.bytes),
        "FailedTableCount": outcome.failed_count(),
    });
    let optional = [("LagSeconds", largest_lag), ("HoldBackSeconds", largest_hold_back)];
    for (name, value) in optional.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        line[name] = json!(value);
    }
    let missed = outcome.done().filter_map(|done| done.missed);
    if let Some(count) = missed.reduce(|a, b| a + b) {
        line["MissedRowCount"] = json!(count);
    }
    println!("{line}");
}
