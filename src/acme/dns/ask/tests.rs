//! Tests of one question: how many sockets there are at once, and how much is kept of an answer.

use std::collections::HashSet;

use futures_util::future::join_all;
use hickory_proto::rr::RData;

use super::*;
use crate::acme::dns::resolver::shown;
use crate::acme::dns::testing::{FakeDns, name};

#[tokio::test]
async fn few_sockets_are_open_at_once_however_much_is_asked() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("bound");
    let about = name("a.example.test");
    let asked = join_all((0..50).map(|_| ask(address, &about, RecordType::TXT, false)));
    let mut ports = HashSet::new();
    let count = async {
        let mut room = [0; 512];
        loop {
            let (_, from) = silent.recv_from(&mut room).await.expect("a question");
            ports.insert(from.port());
        }
    };
    let begin = Instant::now();
    let answers = tokio::select! { answers = asked => answers, () = count => unreachable!("it counts on") };
    assert!(begin.elapsed() < DEADLINE * 2, "waiting for a socket is part of the deadline: {:?}", begin.elapsed());
    assert!(answers.iter().all(Result::is_err), "nobody answers");
    // Each socket is held until the deadline, so that none comes twice.
    assert_eq!(ports.len(), 16);
    let busy = answers.iter().filter(|answer| matches!(answer, Err(Fault::Busy))).count();
    assert_eq!(busy, 34, "who was not asked is not called silent");
}

#[tokio::test]
async fn of_a_huge_answer_a_part_is_kept() {
    let dns = FakeDns::start().await;
    dns.zone("example.test");
    for number in 0..1000 {
        dns.txt("many.example.test", &format!("value {number}"));
    }
    let answer = ask(dns.address, &name("many.example.test"), RecordType::TXT, false).await.expect("an answer");
    assert_eq!(answer.answers.len(), 256);
    let all_are_txt = answer.answers.iter().all(|record| matches!(record.data, RData::TXT(_)));
    assert!(all_are_txt && dns.state().asked.iter().any(|(.., is_tcp)| *is_tcp));
    let values = shown(dns.address, &name("many.example.test"), false).await.expect("an answer");
    assert_eq!(values.len(), 256);
}
