//! Tests of the resolver against zones of strangers: however much they say, a bounded part of it is used.

use hickory_proto::rr::rdata::NS;

use super::*;
use crate::acme::dns::testing::{FakeDns, name};

#[tokio::test]
async fn a_zone_with_countless_servers_and_addresses_is_asked_at_a_few_of_them() {
    let dns = FakeDns::start().await;
    dns.zone("example.test");
    for server in 0..30 {
        let at = format!("many{server}.example.test");
        dns.add("example.test", RData::NS(NS(name(&at))));
        for number in 1..=150 {
            dns.ip(&at, &format!("127.0.{server}.{number}"));
        }
        dns.ip(&at, "2001:db8::1").ip(&at, "2001:db8::1");
    }
    let authority = Resolver::for_test(dns.address).authority(&name("a.example.test")).await.expect("a server");
    assert_eq!(authority.servers.len(), 13);
    let many = &authority.servers[5];
    assert_eq!(many.addresses.len(), 4, "{many:?}");
    assert!(authority.servers.iter().all(|server| server.addresses.len() <= 4), "{:?}", authority.servers);
    // Of both families, and none of them twice.
    assert_eq!(many.addresses.iter().filter(|address| address.is_ipv6()).count(), 1, "{many:?}");
}

#[tokio::test]
async fn an_address_that_leads_to_nobody_is_no_server() {
    let dns = FakeDns::start().await;
    dns.zone("example.test").add("example.test", RData::NS(NS(name("odd.example.test"))));
    for ip in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:0.0.0.0"] {
        dns.ip("odd.example.test", ip);
    }
    dns.ip("odd.example.test", "::ffff:127.0.0.1");
    let authority = Resolver::for_test(dns.address).authority(&name("a.example.test")).await.expect("a server");
    let odd = authority.servers.iter().find(|server| server.name == "odd.example.test").expect("it is named");
    assert_eq!(odd.addresses, [dns.address]);
}

#[tokio::test]
async fn caa_records_without_number_are_not_judged_by_half() {
    let dns = FakeDns::start().await;
    dns.zone("test").zone("example.test");
    for number in 0..300 {
        dns.caa("example.test", "issue", &format!("ca{number}.example"));
    }
    let error = Resolver::for_test(dns.address).caa(&name("example.test")).await.expect_err("too many").to_string();
    assert!(error.ends_with("it has more than 255 records"), "{error}");
}
