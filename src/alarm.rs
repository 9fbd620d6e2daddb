//! A timer for deadlines that move all the time: it is not moved with them.
//!
//! Setting a timer costs each request and each piece of a body; letting one fire too early costs a
//! wake-up once in a limit. So a timer that stands is left where it is, and compared when it fires.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// Wakes its task when a deadline has passed. Takes no memory until it is first asked.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// True when the deadline has passed; else the task is woken then.
    pub fn is_late(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= deadline {
                return true;
            }
            timer.as_mut().reset(deadline);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_may_move_either_way() {
        let begun = Instant::now();
        let mut alarm = Alarm::default();
        let mut until = async |seconds| {
            let deadline = begun + Duration::from_secs(seconds);
            poll_fn(|cx| if alarm.is_late(cx, deadline) { Poll::Ready(()) } else { Poll::Pending }).await;
            begun.elapsed().as_secs()
        };
        assert_eq!(until(10).await, 10);
        assert_eq!(until(30).await, 30, "later than the timer");
        assert_eq!(until(20).await, 30, "long past");
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_moves_the_timer() {
        let begun = Instant::now();
        let mut alarm = Alarm::default();
        let mut deadline = begun + Duration::from_secs(60);
        poll_fn(|cx| {
            if alarm.is_late(cx, deadline) {
                return Poll::Ready(());
            }
            deadline = begun + Duration::from_secs(5);
            if alarm.is_late(cx, deadline) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(begun.elapsed().as_secs(), 5);
    }
}
