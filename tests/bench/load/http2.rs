//! HTTP/2: requests side by side on each connection, with windows as browsers have them.

use std::time::Instant;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{Request, StatusCode};
use tokio::task::spawn_local;

use crate::Amount;
use crate::bodies::{Follower, SMALL, periods};
use crate::http1::{BROWSER, PATH};
use crate::meter::{self, Fault};
use crate::tls::{Dialer, Target};

/// What Chromium announces: windows of 6 MiB a stream and 15 MiB a connection.
const STREAM_WINDOW: u32 = 6 << 20;
const CONNECTION_WINDOW: u32 = 15 << 20;

/// Opens a connection; a task of its own drives it.
pub(crate) async fn open(dialer: &Dialer) -> Result<SendRequest<Bytes>, Fault> {
    let stream = dialer.open().await?;
    let (sender, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(stream)
        .await?;
    // How it ends is seen by its requests.
    spawn_local(async move { connection.await.ok() });
    Ok(sender)
}

/// A browser's request head.
pub(crate) fn head(host: &str, path: &str) -> Result<Request<()>, Fault> {
    let mut request = Request::get(format!("https://{host}{path}"));
    for (name, value) in BROWSER {
        request = request.header(name, value);
    }
    Ok(request.body(())?)
}

/// One request on a connection that is ready for it, and its whole answer. True when it is a 200, and `piece`
/// says of each piece of the body that it is right.
pub(crate) async fn ask(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
    mut piece: impl FnMut(&[u8]) -> bool,
) -> Result<bool, h2::Error> {
    let (response, _) = sender.send_request(request, true)?;
    let (head, mut body) = response.await?.into_parts();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if !piece(&data) {
            return Ok(false);
        }
    }
    Ok(head.status == StatusCode::OK)
}

/// A small request, checked.
pub(crate) async fn ask_small(sender: &mut SendRequest<Bytes>, request: Request<()>) -> Result<bool, h2::Error> {
    let mut rest = SMALL.as_bytes();
    let is_right = ask(sender, request, |piece| {
        let after = rest.strip_prefix(piece);
        rest = after.unwrap_or_default();
        after.is_some()
    })
    .await?;
    Ok(is_right && rest.is_empty())
}

/// Small requests, `streams` at once on each connection.
pub(crate) async fn small(target: Target, amount: Amount, streams: u64) -> Result<(), Fault> {
    let dialer = target.dialer("h2", false)?;
    let request = head(&target.host, PATH)?;
    let connections = meter::many(amount.connections, async |_| {
        let mut sender = open(&dialer).await?.ready().await?;
        if ask_small(&mut sender, request.clone()).await? { Ok(sender) } else { Err("another answer".into()) }
    })
    .await?;
    let workers = connections.iter().flat_map(|sender| (0..streams).map(|_| sender.clone())).collect();
    meter::work(amount.count, workers, |mut sender, meter| {
        let request = request.clone();
        async move {
            while meter.take() {
                let began = Instant::now();
                sender = sender.ready().await?;
                if !ask_small(&mut sender, request.clone()).await? {
                    return Err("another answer".into());
                }
                meter.done(began);
            }
            Ok(sender)
        }
    })
    .await
}

/// Large response bodies, one at a time on each connection.
pub(crate) async fn download(target: Target, amount: Amount, bytes: u64) -> Result<(), Fault> {
    let dialer = target.dialer("h2", false)?;
    let request = head(&target.host, &format!("/bytes/{bytes}"))?;
    let workers = meter::many(amount.connections, async |_| open(&dialer).await).await?;
    meter::work(amount.count, workers, |mut sender, meter| {
        let request = request.clone();
        async move {
            // A frame is at most 16 KiB unless a larger one was allowed, which is not done here.
            let pattern = periods(2);
            while meter.take() {
                let began = Instant::now();
                sender = sender.ready().await?;
                let mut follower = Follower::new(&pattern);
                let is_right = ask(&mut sender, request.clone(), |piece| follower.take(piece)).await?;
                if !is_right || follower.offset() != bytes {
                    return Err("another answer".into());
                }
                meter.done(began);
            }
            Ok(sender)
        }
    })
    .await
}
