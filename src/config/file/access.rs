//! What may be written about who may enter: `deny_with`, `geo` and `maintenance`. The lists themselves are lists of texts.

use toml::de::DeValue;

use crate::config::mirror::{Key, Listed, Mirror, Sample, Shape, Table, Value, choice, mirror};
use crate::config::read::{At, Layer, Node, Reader, read_table};
use crate::config::report::{Code, Diagnostic, Span};
use crate::config::values::{List, Period};

mirror! {
    /// `maintenance`.
    Maintenance, "\"maintenance\"" {
        /// The file that switches it on by being there, relative to this one. It is looked for once a second, without a
        /// reload; what is in it does not matter. Put it where the service can see it: not in a home directory or a temporary one.
        file: String = example("\"/etc/tidegate/maintenance\"");
        /// Who is served all the same: as `allow`.
        allow: List<String> = default("[]");
        /// `Retry-After` of the answer. Default `2m`, our choice: most updates are over by then, and clients that
        /// follow it do not all come back while the site still starts.
        retry_after: Period = default("\"2m\"");
    }
}

mirror! {
    /// `geo`.
    Geo, "\"geo\"" {
        /// Database of countries in the form of MaxMind's files (`.mmdb`). It is held in memory, and taken anew within seconds
        /// when the file changes; a file that cannot be used changes nothing.
        file: String = example("\"/var/lib/GeoIP/GeoLite2-Country.mmdb\"");
        /// Countries whose clients may enter, as two letters of ISO 3166-1. Default: all.
        allow: List<String> = example("[\"DE\", \"AT\"]");
        /// Countries whose clients may not, even if `allow` names them.
        deny: List<String> = default("[]");
        /// Whether those may whose country is not known: private and loopback addresses, processes at a unix listener, and
        /// addresses that the database lacks. Default `allow`, our choice: a database must not lock out whoever looks after
        /// this machine. Danger of `deny`: it locks out your own networks, which no country has.
        on_unknown: OnUnknown = default("\"allow\"");
    }
}

choice! {
    /// `geo.on_unknown`.
    OnUnknown { "allow" => Allow, "deny" => Deny, }
}

/// `deny_with`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DenyWith {
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// Nothing.
    Drop,
}

impl Value for DenyWith {
    fn read(node: Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let (shown, help) = match node.value.get_ref() {
            DeValue::Integer(number) if number.as_str() == "403" => return Some(Self::Forbidden),
            DeValue::Integer(number) if number.as_str() == "404" => return Some(Self::NotFound),
            DeValue::String(text) if text == "drop" => return Some(Self::Drop),
            DeValue::Integer(number) => (number.as_str().to_owned(), CHOICES.to_owned()),
            DeValue::String(text) if matches!(&**text, "403" | "404") => {
                (format!("\"{text}\""), format!("write {text}, without quotes"))
            }
            DeValue::String(text) => (format!("\"{text}\""), CHOICES.to_owned()),
            _ => return reader.wrong_kind(node, "403, 404 or \"drop\"", ""),
        };
        let span = reader.span(node);
        let message = format!("\"deny_with\" in {} cannot be {shown}", reader.place());
        reader.report.push(Diagnostic::at(Code::Choice, &span, message).help(help));
        None
    }

    fn shape() -> Shape {
        Shape::OneOf(vec![Shape::Count { least: 403, most: 404 }, Shape::Choice(&["drop"])])
    }
}

/// What may be written.
const CHOICES: &str = "write 403, 404 or \"drop\"";
