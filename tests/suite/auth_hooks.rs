//! Decision services (N-07, N-32): what they are told, when their word counts, and what the record says of it.

use serde_json::Value;

use crate::harness::{Answer, Edge, Scripted, Seen, Upstream, site_with};

/// `[hooks.score]` at this service.
fn hook(service: impl std::fmt::Display, lines: &str) -> String {
    format!("[hooks.score]\nurl = \"http://{service}/decide\"\n{lines}\n")
}

/// A service that decides by the path that it is told of.
async fn service() -> Upstream {
    Upstream::answering(|seen: &Seen| {
        let told: Value = serde_json::from_slice(&seen.body).expect("JSON");
        match told["path"].as_str().unwrap_or_default() {
            "/bad" => Answer::ok("", r#"{"allow":false,"rule":"bots-7","id":"d-1","more":[1]}"#),
            "/odd" => Answer::ok("", r#"{"allow":"no"}"#),
            "/500" => Answer::status("500 Internal Server Error", "", r#"{"allow":true}"#),
            "/long" => Answer::ok("", format!("{{\"allow\":true,\"rule\":\"{}\\u001b[2J\"}}", "r".repeat(500))),
            _ => Answer::ok("", r#"{"allow":true}"#),
        }
    })
    .await
}

/// N-07: the service is told of the request without its body, its credentials, or secrets in its path.
#[tokio::test]
async fn a_hook_is_told_what_a_record_says_and_no_body() {
    let (upstream, service) = (Upstream::echo().await, service().await);
    let config = format!(
        "{}{}",
        hook(
            &service,
            "headers = [\"User-Agent\", \"Accept-Language\", \"x-listed\", \"x-forwarded-for\", \"remote-user\"]\nmode = \"enforce\""
        ),
        site_with("a.test", &upstream, "hooks = [\"score\"]")
    );
    let edge = Edge::start(&format!("[log]\nredact.headers = [\"x-listed\"]\n{config}")).await;
    let lines = "User-Agent: probe/1\r\nX-Listed: s3cret\r\nAuthorization: Bearer s3cret\r\nCookie: s3cret=1\r\n\
        Remote-User: s3cret\r\nX-Forwarded-For: s3cret\r\nContent-Length: 6\r\n";
    let request = format!("POST /x?token=s3cret&a=1 HTTP/1.1\r\nHost: a.test\r\n{lines}\r\ns3cret");
    assert_eq!(edge.exchange("a.test", request).await.text(), "s3cret");
    let asked = service.only().await;
    assert_eq!((&*asked.method, asked.header("content-type")), ("POST", Some("application/json")));
    let text = String::from_utf8(asked.body.clone()).unwrap();
    assert!(!text.contains("s3cret"), "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    let record = edge.record("request").await;
    for (name, expected) in [
        ("method", "POST"),
        ("host", "a.test"),
        ("client", "127.0.0.1"),
        ("site", "a.test"),
        ("route", ""),
        ("path", record["path"].as_str().unwrap()),
        ("id", record["id"].as_str().unwrap()),
    ] {
        assert_eq!(told[name], expected, "{name}: {told}");
    }
    assert_eq!((&told["upgrade"], &told["headers"]["user-agent"]), (&false.into(), &"probe/1".into()), "{told}");
    assert!(told["headers"].get("accept-language").is_none());
    assert_eq!(asked.header("x-request-id"), record["id"].as_str());
    assert!(!asked.headers.has("authorization") && !asked.headers.has("cookie"));
}

/// N-32: in force a hook refuses with 403 and its rule in the record; watched, it never does.
#[tokio::test]
async fn a_hook_refuses_only_where_it_is_enforced() {
    let (upstream, service) = (Upstream::saying("inside").await, service().await);
    let lines = "hooks = [\"score\"]\n[[sites.\"a.test\".routes]]\npath = \"/v1\"\nhooks = []\n";
    for (mode, status, code) in [("monitor", 200, Value::Null), ("enforce", 403, "E403-hook".into())] {
        let config = hook(&service, &format!("mode = \"{mode}\"")) + &site_with("a.test", &upstream, lines);
        let edge = Edge::start(&config).await;
        let reply = edge.get("a.test", "/bad").await;
        assert_eq!(reply.status, status, "{mode}");
        assert!(!reply.text().contains("bots"), "the rule is for the record");
        let record = edge.record("request").await;
        assert_eq!(record["code"], code, "{record}");
        let said = &record["hook"][0];
        for (name, expected) in
            [("name", "score"), ("mode", mode), ("verdict", "deny"), ("rule", "bots-7"), ("id", "d-1")]
        {
            assert_eq!(said[name], expected, "{record}");
        }
        assert!(said["ms"].is_number(), "{record}");
        assert_eq!(edge.upgrade("a.test", "/bad", "").await.0.status, if mode == "enforce" { 403 } else { 502 });
        assert_eq!(edge.get("a.test", "/good").await.status, 200);
        // N-07: a route can be exempt.
        let asked = service.seen().len();
        assert_eq!(edge.get("a.test", "/v1/bad").await.status, 200);
        assert_eq!(service.seen().len(), asked);
        edge.get("a.test", "/long").await;
        let long = edge.record_where("a long rule", |record| record["path"] == "/long").await;
        assert_eq!(long["hook"][0]["rule"].as_str().map(str::len), Some(128), "{long}");
    }
}

/// No decision: `on_error` says what it means, and only in force; nobody waits longer than the timeout.
#[tokio::test]
async fn a_hook_without_a_decision_follows_on_error() {
    let (upstream, service, silent) = (Upstream::saying("inside").await, service().await, Scripted::bind().await);
    for (lines, expected) in [
        ("mode = \"monitor\"", 200),
        ("mode = \"enforce\"", 503),
        ("mode = \"enforce\"\non_error = \"deny\"", 503),
        ("mode = \"enforce\"\non_error = \"allow\"", 200),
    ] {
        let config = hook(&service, lines) + &site_with("a.test", &upstream, "hooks = [\"score\"]");
        let slow = hook(&silent, &format!("{lines}\ntimeout = \"100ms\"")).replace("score", "slow");
        let edge = Edge::start(&(config + &slow + &site_with("b.test", &upstream, "hooks = [\"slow\"]"))).await;
        for target in ["/odd", "/500"] {
            assert_eq!(edge.get("a.test", target).await.status, expected, "{lines} {target}");
        }
        let reply = edge.get("b.test", "/").await;
        assert_eq!(reply.status, expected, "{lines}");
        let record = edge.record_where("the slow one", |record| record["site"] == "b.test").await;
        assert_eq!(record["hook"][0]["verdict"], "error", "{record}");
        assert_eq!(record["code"], if expected == 503 { "E503-hook".into() } else { Value::Null }, "{record}");
    }
}
