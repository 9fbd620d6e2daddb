//! Sites and routes: prefixes, mounts, redirects, fixed answers, aliases, embedding, origins, balancing.

use crate::harness::{Answer, Edge, Scripted, Upstream, connect_request, site, site_with, within};

/// A site with routes written below it.
fn routed(upstream: &Upstream, routes: &str) -> String {
    format!("{}{routes}", site("a.test", upstream))
}

/// CONFIG.md 3: the longest prefix of whole segments wins, whatever the order in the file.
#[tokio::test]
async fn the_longest_prefix_of_whole_segments_wins() {
    let upstream = Upstream::saying("site").await;
    let (api, deep) = (Upstream::saying("api").await, Upstream::saying("deep").await);
    let routes = format!(
        "[[sites.\"a.test\".routes]]\npath = \"/api\"\nupstream = \"{api}\"\n[[sites.\"a.test\".routes]]\npath = \"/api/deep\"\nupstream = \"{deep}\"\n"
    );
    let edge = Edge::start(&routed(&upstream, &routes)).await;
    for (path, expected) in [
        ("/", "site"),
        ("/apix", "site"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x?y", "api"),
        ("/api?x=/deep", "api"),
        ("/api/deep", "deep"),
        ("/api/deep/er", "deep"),
        ("/api/deeper", "api"),
        ("/API", "site"),
    ] {
        assert_eq!(edge.get("a.test", path).await.text(), expected, "{path}");
    }
}

/// SECURITY.md 2, path normalisation: where rules are by path, a path that could mean another is refused.
#[tokio::test]
async fn a_path_that_could_dodge_a_rule_is_refused() {
    let upstream = Upstream::saying("site").await;
    let routes = "[[sites.\"a.test\".routes]]\npath = \"/admin\"\nrespond = { status = 403 }\n";
    let edge = Edge::start(&routed(&upstream, routes)).await;
    for path in [
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/%2E./admin",
        "/x%2fadmin",
        "/x%5cadmin",
        "/admin%00",
        "/./admin",
        "/x/..;/admin",
        "/%61dmin",
        "//admin/x",
        "/admin;x",
    ] {
        assert_eq!(edge.get("a.test", path).await.status, 400, "{path}");
    }
    assert_eq!(edge.get("a.test", "/admin/x").await.status, 403);
    assert!(upstream.seen().is_empty());
    for path in ["/agent%3Amain", "/x%7E//y;z"] {
        assert_eq!(edge.get("a.test", path).await.status, 200, "{path}");
    }
}

/// CONFIG.md 3: a route may also be chosen by method, header and upgrade.
#[tokio::test]
async fn routes_match_methods_headers_and_upgrades() {
    let upstream = Upstream::saying("site").await;
    let routes = "[[sites.\"a.test\".routes]]\npath = \"/\"\nmethods = [\"DELETE\"]\nrespond = { status = 405 }\n\
        [[sites.\"a.test\".routes]]\npath = \"/h\"\nheaders = { X-Beta = \"1\" }\nrespond = { status = 202 }\n\
        [[sites.\"a.test\".routes]]\npath = \"/w\"\nupgrade = true\nrespond = { status = 418 }\n";
    let edge = Edge::start(&routed(&upstream, routes)).await;
    assert_eq!(edge.exchange("a.test", "DELETE /x HTTP/1.1\r\nHost: a.test\r\n\r\n").await.status, 405);
    assert_eq!(edge.get("a.test", "/x").await.status, 200);
    assert_eq!(edge.get_with("a.test", "/h", "X-Beta: 1\r\n").await.status, 202);
    assert_eq!(edge.get_with("a.test", "/h", "X-Beta: 2\r\n").await.status, 200);
    assert_eq!(edge.get("a.test", "/w").await.status, 200);
    assert_eq!(edge.upgrade("a.test", "/w", "").await.0.status, 418);
    let mut h2 = edge.h2("a.test").await;
    let (response, _send) = h2.open(connect_request("a.test", "/w"), false).await.unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 418);
}

/// F-05, F-15, F-27: a stripping mount maps the path down, and Location and cookie paths back up.
#[tokio::test]
async fn a_stripping_mount_maps_both_ways() {
    let upstream = Upstream::answering(|seen| {
        let origin = format!("https://{}", seen.header("host").unwrap_or_default());
        let (status, lines) = match seen.target.as_str() {
            "/relative" => ("302 Found", "Location: /login?x=1\r\n".to_owned()),
            "/absolute" => ("302 Found", format!("Location: {origin}/login\r\n")),
            "/foreign" => ("302 Found", "Location: https://other.example.com/login\r\n".to_owned()),
            "/sibling" => ("302 Found", "Location: login\r\n".to_owned()),
            "/cookies" => (
                "200 OK",
                "Set-Cookie: a=1; Path=/; HttpOnly\r\nSet-Cookie: b=2; path=/deep; Secure\r\nSet-Cookie: c=3\r\n"
                    .to_owned(),
            ),
            _ => ("200 OK", "Content-Type: application/javascript\r\n".to_owned()),
        };
        Answer::status(status, &lines, &seen.target)
    })
    .await;
    let edge = Edge::start(&routed(&upstream, "[[sites.\"a.test\".routes]]\npath = \"/mount\"\nstrip = true\n")).await;
    for (asked, seen) in [
        ("/mount/assets/index.js", "/assets/index.js"),
        ("/mount/", "/"),
        ("/mount/?gatewayUrl=wss%3A%2F%2Fx", "/?gatewayUrl=wss%3A%2F%2Fx"),
        ("/mount/mount/x", "/mount/x"),
        ("/other", "/other"),
    ] {
        assert_eq!(edge.get("a.test", asked).await.text(), seen, "{asked}");
    }
    let seen = upstream.request(0).await;
    assert_eq!(seen.header("x-forwarded-prefix"), Some("/mount"));
    assert!(!upstream.request(4).await.headers.has("x-forwarded-prefix"));
    for (asked, location) in [
        ("/mount/relative", "/mount/login?x=1"),
        ("/mount/absolute", "https://a.test/mount/login"),
        ("/mount/foreign", "https://other.example.com/login"),
        ("/mount/sibling", "login"),
    ] {
        assert_eq!(edge.get("a.test", asked).await.headers.get("location"), Some(location), "{asked}");
    }
    let cookies = edge.get("a.test", "/mount/cookies").await;
    let cookies = cookies.headers.all("set-cookie");
    assert!(cookies[0].contains("Path=/mount") && cookies[0].contains("HttpOnly"), "{cookies:?}");
    assert!(cookies[1].to_ascii_lowercase().contains("path=/mount/deep"), "{cookies:?}");
    assert_eq!(cookies[2], "c=3", "without a path the browser uses the directory of the request");
}

/// F-06: the mount without its slash is a redirect for pages.
#[tokio::test]
async fn a_mount_without_its_slash_redirects() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&routed(&upstream, "[[sites.\"a.test\".routes]]\npath = \"/mount\"\nstrip = true\n")).await;
    let reply = edge.get("a.test", "/mount?x=1").await;
    assert_eq!(reply.status, 308);
    assert!(reply.headers.get("location").unwrap().ends_with("/mount/?x=1"), "{:?}", reply.headers);
}

/// CONFIG.md 3: `mount` puts another prefix in the place of the one taken off.
#[tokio::test]
async fn a_mount_may_replace_the_prefix() {
    let upstream = Upstream::answering(|seen| Answer::ok("", &seen.target)).await;
    let routes = "[[sites.\"a.test\".routes]]\npath = \"/public\"\nstrip = true\nmount = \"/v1\"\n";
    let edge = Edge::start(&routed(&upstream, routes)).await;
    assert_eq!(edge.get("a.test", "/public/models?x").await.text(), "/v1/models?x");
}

/// F-07: a mount that does not strip passes the path as it is.
#[tokio::test]
async fn a_verbatim_mount_changes_nothing() {
    let upstream = Upstream::answering(|seen| Answer::ok("Set-Cookie: a=1; Path=/openclaw\r\n", &seen.target)).await;
    let routes = format!("[[sites.\"a.test\".routes]]\npath = \"/openclaw\"\nupstream = \"{upstream}\"\n");
    let edge = Edge::start(&format!("[sites.\"a.test\"]\nrespond = {{ status = 404 }}\n{routes}")).await;
    let reply = edge.get("a.test", "/openclaw/chat").await;
    assert_eq!(
        (reply.text().as_str(), reply.headers.get("set-cookie")),
        ("/openclaw/chat", Some("a=1; Path=/openclaw"))
    );
    assert_eq!(edge.get("a.test", "/other").await.status, 404);
}

/// CONFIG.md 3: `redirect` and `respond` answer here.
#[tokio::test]
async fn redirects_and_fixed_answers_need_no_upstream() {
    let routes = "[sites.\"a.test\"]\nredirect = { to = \"https://new.example.com{uri}\", status = 308 }\n\
        [[sites.\"a.test\".routes]]\npath = \"/robots.txt\"\nrespond = { status = 200, body = \"none\", headers = { Content-Type = \"text/plain\" } }\n";
    let edge = Edge::start(routes).await;
    let reply = edge.get("a.test", "/a%20b?c=%2F").await;
    assert_eq!((reply.status, reply.headers.get("location")), (308, Some("https://new.example.com/a%20b?c=%2F")));
    let reply = edge.get("a.test", "/robots.txt").await;
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.headers.get("content-type")),
        (200, "none", Some("text/plain"))
    );
    let reply = edge.exchange("a.test", "HEAD /robots.txt HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((reply.status, reply.headers.get("content-length")), (200, Some("4")));
    // A header cannot be split by what a client writes into the target.
    let reply = edge.h2("a.test").await.get("a.test", "/%0d%0aX-Evil:%201").await;
    assert_eq!(reply.header("location"), Some("https://new.example.com/%0d%0aX-Evil:%201"));
}

/// CONFIG.md 3: other names redirect to the first one, or are served where that is asked for.
#[tokio::test]
async fn aliases_redirect_or_are_served() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("a.test", &upstream, "aliases = [\"www.a.test\"]")).await;
    let reply = edge.get("www.a.test", "/x?y").await;
    assert_eq!(reply.status, 308);
    let location = reply.headers.get("location").unwrap();
    assert!(location.starts_with("https://a.test") && location.ends_with("/x?y"), "{location}");
    assert!(upstream.seen().is_empty());
    let lines = "aliases = [\"www.a.test\"]\nserve_aliases = true";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    assert_eq!(edge.get("www.a.test", "/x").await.status, 200);
    assert_eq!(upstream.only().await.header("host"), Some("www.a.test"));
}

/// N-04: the http listener sends everybody to https, for known names only.
#[tokio::test]
async fn cleartext_redirects_to_https() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site("a.test", &upstream)).await;
    for (method, target) in [("GET", "/a%2Fb?c"), ("POST", "/x")] {
        let mut wire = edge.plain().await;
        wire.send(format!("{method} {target} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")).await;
        let reply = wire.reply().await;
        assert_eq!(reply.status, 308);
        let location = reply.headers.get("location").unwrap();
        assert!(location.starts_with("https://a.test") && location.ends_with(target), "{location}");
    }
    let mut wire = edge.plain().await;
    wire.send("GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n").await;
    let reply = wire.reply().await;
    assert!(matches!(reply.status, 421 | 404) && !reply.headers.has("location"), "no open redirect: {reply:?}");
    assert!(upstream.seen().is_empty());
}

/// F-02: a site may be served in cleartext on a loopback listener.
#[tokio::test]
async fn a_site_may_be_served_in_cleartext_on_loopback() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&site_with("localhost", &upstream, "tls = \"off\"")).await;
    let mut wire = edge.plain().await;
    wire.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    assert_eq!(upstream.only().await.header("x-forwarded-proto"), Some("http"));
}

/// F-21, GATEWAY.md 5: named parents may frame the site; all else of the policy stays byte for byte.
#[tokio::test]
async fn embed_replaces_only_the_framing_rules() {
    let upstream = Upstream::answering(|_| {
        Answer::ok("X-Frame-Options: DENY\r\nContent-Security-Policy: default-src 'self'; frame-ancestors 'none'; img-src *\r\n", "x")
    })
    .await;
    let lines = "embed = [\"https://dash.example.com\", \"https://other.example.com:8443\"]";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    let reply = edge.get("a.test", "/").await;
    assert!(!reply.headers.has("x-frame-options"));
    let policy = reply.headers.get("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'self';") && policy.contains("img-src *"), "{policy}");
    assert!(policy.contains("frame-ancestors https://dash.example.com https://other.example.com:8443"), "{policy}");
    assert!(!policy.contains("'none'"), "{policy}");
}

/// N-30: the edge may hold an Origin list of its own; it judges upgrades and unsafe methods only.
#[tokio::test]
async fn origins_are_judged_where_they_matter() {
    let upstream = Upstream::saying("ok").await;
    let lines = "origins = { allow = [\"https://app.example.com\"], missing = \"deny\" }";
    let edge = Edge::start(&site_with("a.test", &upstream, lines)).await;
    let post = |origin: &str| format!("POST / HTTP/1.1\r\nHost: a.test\r\n{origin}Content-Length: 0\r\n\r\n");
    assert_eq!(edge.exchange("a.test", post("Origin: https://app.example.com\r\n")).await.status, 200);
    assert_eq!(edge.exchange("a.test", post("Origin: HTTPS://APP.example.com\r\n")).await.status, 200);
    let served = upstream.seen().len();
    for origin in [
        "",
        "Origin: https://evil.example.com\r\n",
        "Origin: null\r\n",
        "Origin: https://app.example.com.evil.test\r\n",
        "Origin: https://app.example.com:444\r\n",
    ] {
        let reply = edge.exchange("a.test", post(origin)).await;
        assert!(reply.status == 403 && reply.is_by_edge(), "{origin:?}: {}", reply.status);
        assert_eq!(edge.upgrade("a.test", "/", origin).await.0.status, 403, "{origin:?}");
    }
    assert_eq!(upstream.seen().len(), served);
    assert_eq!(edge.get("a.test", "/").await.status, 200, "reading is not judged");
    let record = edge.record_where("the refusal", |record| record["status"] == 403).await;
    assert_eq!(record["by"], "edge", "N-48");
}

/// N-04: HSTS only where it is asked for, and only over TLS.
#[tokio::test]
async fn hsts_is_opt_in() {
    let upstream = Upstream::echo().await;
    let edge = Edge::start(&(site_with("a.test", &upstream, "hsts = \"365d\"") + &site("b.test", &upstream))).await;
    let value = edge.get("a.test", "/").await.headers.get("strict-transport-security").map(str::to_owned);
    assert!(value.as_deref().is_some_and(|value| value.contains("max-age=31536000")), "{value:?}");
    assert!(!edge.get("b.test", "/").await.headers.has("strict-transport-security"));
}

/// CONFIG.md 3: pages of the operator's own take the place of our words, with the same status.
#[tokio::test]
async fn error_pages_replace_our_words() {
    let dir = tempfile::TempDir::new().unwrap();
    let page = dir.path().join("502.html");
    std::fs::write(&page, "<h1>back soon</h1>").unwrap();
    let closed = Scripted::bind().await.to_string();
    let edge = Edge::start(&site_with("a.test", &closed, &format!("errors = {{ 502 = {page:?} }}"))).await;
    let reply = edge.get_with("a.test", "/", "Accept: text/html\r\n").await;
    assert_eq!((reply.status, reply.text().as_str()), (502, "<h1>back soon</h1>"));
    assert!(reply.headers.get("content-type").unwrap().starts_with("text/html"));
    assert!(reply.headers.has("x-request-id") && reply.is_by_edge());
}

/// CONFIG.md 3: several servers are balanced, and one that refuses is left for another.
#[tokio::test]
async fn servers_are_balanced() {
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let gone = Scripted::bind().await.to_string();
    let config = format!(
        "[upstreams.pair]\nservers = [\"{one}\", \"{two}\"]\nbalance = \"round-robin\"\n[upstreams.half]\nservers = [\"{gone}\", \"{one}\"]\n{}{}",
        site("a.test", "pair"),
        site("b.test", "half")
    );
    let edge = Edge::start(&config).await;
    let mut wire = edge.h1("a.test").await;
    for _ in 0..4 {
        wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        wire.reply().await;
    }
    assert_eq!((one.seen().len(), two.seen().len()), (2, 2));
    for _ in 0..4 {
        assert_eq!(edge.get("b.test", "/").await.text(), "one");
    }
}

/// M-13: an upstream may be a name, and `ws://` means http.
#[tokio::test]
async fn an_upstream_may_be_a_name() {
    let upstream = Upstream::saying("by name").await;
    let port = upstream.address().port();
    let config = site("a.test", format!("ws://localhost:{port}")) + &site("b.test", format!("http://localhost:{port}"));
    let edge = Edge::start(&config).await;
    for host in ["a.test", "b.test"] {
        assert_eq!(edge.get(host, "/").await.text(), "by name");
    }
}

/// N-31: routes may have limits of their own.
#[tokio::test]
async fn a_route_has_limits_of_its_own() {
    let upstream = Upstream::echo().await;
    let routes = "[[sites.\"a.test\".routes]]\npath = \"/v1\"\nlimits = { body = \"10B\" }\n";
    let edge = Edge::start(&routed(&upstream, routes)).await;
    let post =
        |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 20\r\n\r\n{}", "x".repeat(20));
    assert_eq!(edge.exchange("a.test", post("/v1/x")).await.status, 413);
    assert_eq!(edge.exchange("a.test", post("/other")).await.status, 200);
}
