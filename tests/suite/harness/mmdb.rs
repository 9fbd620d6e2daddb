//! A writer of country databases in the form of MaxMind's files, version 2: a search tree over the bits of addresses,
//! then what stands at its leaves, then what kind of file it is.

use ipnet::IpNet;

/// A database of this kind with these networks and their countries.
pub(crate) fn mmdb(kind: &str, networks: &[(&str, &str)]) -> Vec<u8> {
    let mut tree: Vec<[Record; 2]> = vec![[Record::Empty; 2]];
    let mut data = Vec::new();
    for (network, country) in networks {
        let network: IpNet = network.parse().expect("a network");
        let leaf = Record::Data(data.len());
        map(&mut data, &[("country", &|data| map(data, &[("iso_code", &|data| text(data, country))]))]);
        insert(&mut tree, network, leaf);
    }
    let mut bytes = Vec::new();
    for record in tree.iter().flatten() {
        let value = match record {
            Record::Empty => tree.len(),
            Record::Node(node) => *node,
            Record::Data(offset) => tree.len() + 16 + offset,
        };
        bytes.extend_from_slice(&u32::try_from(value).expect("a small tree").to_be_bytes()[1..]);
    }
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&data);
    bytes.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    let nodes = u64::try_from(tree.len()).expect("a small tree");
    map(
        &mut bytes,
        &[
            ("binary_format_major_version", &|bytes| number(bytes, 5, 2)),
            ("binary_format_minor_version", &|bytes| number(bytes, 5, 0)),
            ("build_epoch", &|bytes| number(bytes, 9, 1_700_000_000)),
            ("database_type", &|bytes| text(bytes, kind)),
            ("description", &|bytes| map(bytes, &[])),
            ("ip_version", &|bytes| number(bytes, 5, 6)),
            ("languages", &|bytes| bytes.extend_from_slice(&[0, 4])),
            ("node_count", &|bytes| number(bytes, 6, nodes)),
            ("record_size", &|bytes| number(bytes, 5, 24)),
        ],
    );
    bytes
}

#[derive(Clone, Copy)]
enum Record {
    Empty,
    Node(usize),
    Data(usize),
}

/// IPv4 stands at ::/96.
fn insert(tree: &mut Vec<[Record; 2]>, network: IpNet, leaf: Record) {
    let (bits, length) = match network {
        IpNet::V4(net) => (u128::from(u32::from(net.network())), 96 + u32::from(net.prefix_len())),
        IpNet::V6(net) => (u128::from(net.network()), u32::from(net.prefix_len())),
    };
    let mut node = 0;
    for depth in 0..length {
        let side = usize::from(bits >> (127 - depth) & 1 == 1);
        if depth + 1 == length {
            tree[node][side] = leaf;
            return;
        }
        node = match tree[node][side] {
            Record::Node(next) => next,
            Record::Empty | Record::Data(_) => {
                tree.push([Record::Empty; 2]);
                let next = tree.len() - 1;
                tree[node][side] = Record::Node(next);
                next
            }
        };
    }
}

type Part<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));

fn map(bytes: &mut Vec<u8>, parts: &[Part<'_>]) {
    control(bytes, 7, parts.len());
    for (key, value) in parts {
        text(bytes, key);
        value(bytes);
    }
}

fn text(bytes: &mut Vec<u8>, words: &str) {
    control(bytes, 2, words.len());
    bytes.extend_from_slice(words.as_bytes());
}

fn number(bytes: &mut Vec<u8>, kind: u8, value: u64) {
    let all = value.to_be_bytes();
    let digits = &all[all.iter().position(|byte| *byte != 0).unwrap_or(all.len())..];
    control(bytes, kind, digits.len());
    bytes.extend_from_slice(digits);
}

/// Kind and length; both are short here, but for kinds above 7, which have a byte of their own.
fn control(bytes: &mut Vec<u8>, kind: u8, length: usize) {
    let length = u8::try_from(length).ok().filter(|length| *length < 29).expect("a short one");
    if kind > 7 {
        bytes.extend_from_slice(&[length, kind - 7]);
    } else {
        bytes.push(kind << 5 | length);
    }
}
