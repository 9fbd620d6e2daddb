//! A well-behaved client: small requests at a steady pace on connections that stay, over both protocols, and on fresh
//! ones. A delay counts from when the request was due, so that a stall shows in each request that it held up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::{Value, json};
use tokio::task::spawn_local;
use tokio::time::{Instant, interval, timeout};

use crate::Enemy;
use crate::http1::{self, Http1, PATH};
use crate::http2;
use crate::meter::{Fault, Starter};
use crate::tls::Dialer;

/// Connections that stay, of each protocol, and the pace on each.
const KEPT: usize = 4;
const KEPT_PACE: Duration = Duration::from_millis(40);

/// From one fresh connection to the next.
const FRESH_PACE: Duration = Duration::from_millis(50);

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Delays in seconds, and what went wrong.
#[derive(Default)]
struct Seen {
    kept: RefCell<Vec<f64>>,
    fresh: RefCell<Vec<f64>>,
    faults: RefCell<BTreeMap<String, u64>>,
}

impl Seen {
    fn fail(&self, how: &str, fault: impl std::fmt::Display) {
        *self.faults.borrow_mut().entry(format!("{how}: {fault}")).or_default() += 1;
    }

    /// What was seen since the last time.
    fn report(&self) -> Value {
        let faults = self.faults.take();
        json!({
            "kept": spread(self.kept.take()), "fresh": spread(self.fresh.take()),
            "failed": faults.values().sum::<u64>(), "faults": faults,
        })
    }
}

fn spread(mut delays: Vec<f64>) -> Value {
    delays.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| {
        let rank = (delays.len() * percent).div_ceil(100).max(1) - 1;
        delays.get(rank).map_or(0.0, |seconds| seconds * 1e3)
    };
    json!({ "count": delays.len(), "p50": at(50), "p99": at(99), "max": at(100) })
}

/// Asks until stdin ends; a line of it is answered with what was seen since the last one.
pub(crate) async fn run(enemy: Rc<Enemy>) -> Result<(), Fault> {
    let seen = Rc::new(Seen::default());
    let mut starter = Starter::new();
    for turn in 0..KEPT {
        spawn_local(over_http1(Rc::clone(&enemy), turn, Rc::clone(&seen)));
        spawn_local(over_http2(Rc::clone(&enemy), turn, Rc::clone(&seen)));
    }
    spawn_local(on_fresh(Rc::clone(&enemy), Rc::clone(&seen)));
    starter.tell("ready");
    while starter.line().await?.is_some() {
        starter.tell(seen.report());
    }
    Ok(())
}

/// Runs one request that was due at `due`, under the bound.
async fn within<T>(
    how: &str,
    due: Instant,
    seen: &Seen,
    delays: &RefCell<Vec<f64>>,
    work: impl Future<Output = Result<T, Fault>>,
) -> Option<T> {
    match timeout(PATIENCE, work).await {
        Ok(Ok(done)) => {
            delays.borrow_mut().push(due.elapsed().as_secs_f64());
            return Some(done);
        }
        Ok(Err(fault)) => seen.fail(how, fault),
        Err(_) => seen.fail(how, "no answer in 5 s"),
    }
    None
}

async fn over_http1(enemy: Rc<Enemy>, turn: usize, seen: Rc<Seen>) {
    let request = http1::head(&enemy.target.host, "GET", PATH, "");
    let mut pace = interval(KEPT_PACE);
    let mut open: Option<Http1> = None;
    loop {
        let due = pace.tick().await;
        // One that was closed before we asked has failed nobody.
        let usable = match open.take() {
            Some(mut http) => (!http.is_over().await).then_some(http),
            None => None,
        };
        open = within("HTTP/1.1", due, &seen, &seen.kept, async {
            let mut http = match usable {
                Some(http) => http,
                None => Http1::new(enemy.open(&enemy.target.dialer("http/1.1", false)?, turn).await?),
            };
            let is_last = http.small(&request).await?;
            Ok((!is_last).then_some(http))
        })
        .await
        .flatten();
    }
}

async fn over_http2(enemy: Rc<Enemy>, turn: usize, seen: Rc<Seen>) {
    let mut pace = interval(KEPT_PACE);
    let mut open: Option<SendRequest<Bytes>> = None;
    loop {
        let due = pace.tick().await;
        let usable = match open.take() {
            Some(sender) => sender.ready().await.ok(),
            None => None,
        };
        open = within("HTTP/2", due, &seen, &seen.kept, async {
            let mut sender = match usable {
                Some(sender) => sender,
                None => connect_http2(&enemy, turn).await?.ready().await?,
            };
            let request = http2::head(&enemy.target.host, PATH)?;
            if http2::ask_small(&mut sender, request).await? { Ok(sender) } else { Err("another answer".into()) }
        })
        .await;
    }
}

async fn connect_http2(enemy: &Enemy, turn: usize) -> Result<SendRequest<Bytes>, Fault> {
    let stream = enemy.open(&enemy.target.dialer("h2", false)?, turn).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    spawn_local(async move { connection.await.ok() });
    Ok(sender)
}

/// Connection, handshake, request, close.
async fn on_fresh(enemy: Rc<Enemy>, seen: Rc<Seen>) {
    let request: Rc<[u8]> = http1::head(&enemy.target.host, "GET", PATH, "Connection: close\r\n").into();
    let mut pace = interval(FRESH_PACE);
    for turn in 0.. {
        let due = pace.tick().await;
        let (enemy, seen, request) = (Rc::clone(&enemy), Rc::clone(&seen), Rc::clone(&request));
        // Beside one another: a slow one does not hide that the next is slow too.
        spawn_local(async move {
            let dialer: Dialer = match enemy.target.dialer("http/1.1", false) {
                Ok(dialer) => dialer,
                Err(fault) => return seen.fail("fresh", fault),
            };
            within("fresh", due, &seen, &seen.fresh, async {
                Http1::new(enemy.open(&dialer, turn).await?).small(&request).await
            })
            .await;
        });
    }
}
