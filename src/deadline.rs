//! The time that an invocation has: one instant, made once from the runtime's deadline.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Lambda's own limit; a deadline further away than this is not one.
const LONGEST_INVOCATION: Duration = Duration::from_secs(900);

/// What is assumed where the runtime names no plausible deadline, as under `cargo lambda watch`.
const ASSUMED_BUDGET: Duration = Duration::from_secs(840);

/// So long before Lambda ends the invocation we do, in order to say why.
const MARGIN: Duration = Duration::from_millis(500);

/// When an invocation must be over, and when it must stop reading in order to commit before that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// Of every step that has a time-out of its own.
    end: Instant,
    /// Of all the others.
    last_call: Instant,
    reading_ends: Instant,
}

impl Deadline {
    /// `deadline_ms`: Unix time in milliseconds, as the runtime gives it. 0 and times long past (which `cargo lambda
    /// watch` sends) and times beyond Lambda's own limit count as unknown.
    pub(crate) fn from_epoch_ms(deadline_ms: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let budget = Duration::from_millis(deadline_ms).saturating_sub(now);
        let is_plausible = !budget.is_zero() && budget <= LONGEST_INVOCATION + Duration::from_secs(5);
        Self::within(if is_plausible { budget } else { ASSUMED_BUDGET })
    }

    /// A fifth of the budget, from 2 to 20 s and at most half, is kept for committing what was read.
    fn within(budget: Duration) -> Self {
        let now = Instant::now();
        let reserve = (budget / 5).clamp(Duration::from_secs(2), Duration::from_secs(20)).min(budget / 2);
        let (end, margin) = (now + budget, MARGIN.min(budget / 10));
        Self { end: end - margin, last_call: end - margin / 2, reading_ends: end - reserve }
    }

    /// Ends the reading after `max_seconds` if that is sooner; the commit may still take until the end.
    pub(crate) fn tightened(mut self, max_seconds: Option<u64>) -> Self {
        if let Some(seconds) = max_seconds {
            self.reading_ends =
                self.reading_ends.min(Instant::now() + Duration::from_secs(seconds).min(LONGEST_INVOCATION));
        }
        self
    }

    /// How long reading may still go on; zero when it is over.
    pub(crate) fn reading_left(self) -> Duration {
        self.reading_ends.saturating_duration_since(Instant::now())
    }

    pub(crate) fn is_reading_over(self) -> bool {
        self.reading_left().is_zero()
    }

    /// When the run is given up, whatever it waits for.
    pub(crate) fn last_call(self) -> Instant {
        self.last_call
    }

    /// The time-out of one step: `longest`, or what is left of the invocation.
    pub(crate) fn at_most(self, longest: Duration) -> Duration {
        longest.min(self.end.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch_ms_in(seconds: u64) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        u64::try_from((now + Duration::from_secs(seconds)).as_millis()).expect("fits")
    }

    #[test]
    fn a_plausible_deadline_leaves_a_reserve_for_the_commit() {
        let deadline = Deadline::from_epoch_ms(epoch_ms_in(60));
        assert!(deadline.reading_left() > Duration::from_secs(46));
        assert!(deadline.reading_left() <= Duration::from_secs(48));
    }

    #[test]
    fn an_implausible_deadline_counts_as_unknown() {
        for deadline_ms in [0, 123_456, u64::MAX, epoch_ms_in(86_400)] {
            let left = Deadline::from_epoch_ms(deadline_ms).reading_left();
            assert!(left > Duration::from_secs(800), "{deadline_ms}: {left:?}");
        }
    }

    #[test]
    fn limits_tighten_and_never_widen() {
        let deadline = Deadline::from_epoch_ms(epoch_ms_in(60));
        assert!(deadline.tightened(Some(5)).reading_left() <= Duration::from_secs(5));
        assert!(deadline.tightened(Some(u64::MAX)).reading_left() <= Duration::from_secs(48));
        assert!(deadline.tightened(Some(500)).reading_left() <= Duration::from_secs(48));
        assert!(deadline.tightened(Some(0)).is_reading_over());
    }
}
