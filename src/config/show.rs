//! `tidegate show`: each effective value and where it came from.
//!
//! Values are shown as they were written, secrets masked. Nothing here decides anything.

use std::fmt::Write as _;

use toml::de::DeValue;

use super::compile::text::is_secret_header;
use super::file::{self, File, Shared};
use super::mirror::{Listed, Mirror};
use super::read::{At, Layer};
use crate::addr::HostPattern;

/// All effective settings of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    groups: Vec<Group>,
}

/// The settings of one table.
#[derive(Clone, Debug)]
pub struct Group {
    /// `[listen]`, `site "localhost"`, `route "/api" of site "localhost"`.
    pub title: String,
    /// The site it belongs to.
    pub site: Option<HostPattern>,
    /// Its settings.
    pub settings: Vec<Setting>,
}

/// One effective setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key within the table: `timeouts.idle`.
    pub key: String,
    /// Its value as TOML, masked if it is a secret.
    pub value: String,
    /// Where it came from: `built-in default`, `preset "openclaw"`, `tidegate.toml:12`.
    pub origin: String,
}

impl Effective {
    /// The settings that belong to no site.
    pub(crate) fn new(file: &File) -> Self {
        let mut listed = Vec::new();
        let globals = File { sites: None, defaults: None, ..file.clone() };
        globals.settings("", &mut listed);
        let mut groups: Vec<Group> = Vec::new();
        for setting in listed {
            let (title, key) = match setting.path.split_once('.') {
                Some((table, key)) => (format!("[{table}]"), key.to_owned()),
                None => ("top level".to_owned(), setting.path.clone()),
            };
            let index = groups.iter().position(|group| group.title == title).unwrap_or_else(|| {
                groups.push(Group { title, site: None, settings: Vec::new() });
                groups.len() - 1
            });
            groups[index].settings.push(readable(key, &setting));
        }
        Self { groups }
    }

    /// Adds the directory that was chosen for this user.
    pub(crate) fn storage(&mut self, path: &std::path::Path) {
        if let Some(group) = self.groups.first_mut() {
            let value = serde_json::Value::from(path.to_string_lossy()).to_string();
            group.settings.push(Setting {
                key: "storage".to_owned(),
                value,
                origin: "default for this machine".to_owned(),
            });
        }
    }

    /// Adds a site: its own keys, and what it shares after all layers.
    pub(crate) fn site(&mut self, host: &HostPattern, merged: &Shared, written: &file::Site, is_public: bool) {
        let mut listed = Vec::new();
        // The routes follow as groups of their own.
        file::Site { shared: merged.clone(), routes: None, ..written.clone() }.settings("", &mut listed);
        let mut settings: Vec<Setting> = listed.iter().map(|setting| readable(setting.path.clone(), setting)).collect();
        if written.certificate.is_none() && written.tls.as_ref().is_none_or(|at| at.value == file::Switch::On) {
            let (value, origin) = if is_public {
                ("\"acme\"", "default for public names")
            } else {
                ("\"local\"", "default for names that no public authority issues for")
            };
            let setting = (value.to_owned(), origin.to_owned());
            settings.insert(0, Setting { key: "certificate".to_owned(), value: setting.0, origin: setting.1 });
        }
        self.groups.push(Group { title: format!("site \"{host}\""), site: Some(host.clone()), settings });
    }

    /// Adds a route: what it says itself. Everything else is as in its site.
    pub(crate) fn route(&mut self, host: &HostPattern, path: &str, own: &Shared, why: Option<&At<String>>) {
        let mut listed = Vec::new();
        Shared { why: why.cloned(), ..own.clone() }.settings("", &mut listed);
        let settings = listed
            .iter()
            .filter(|listed| listed.said.is_some())
            .map(|setting| readable(setting.path.clone(), setting))
            .collect();
        self.groups.push(Group {
            title: format!("route \"{path}\" of site \"{host}\""),
            site: Some(host.clone()),
            settings,
        });
    }

    /// All groups, or those of one site.
    pub fn groups<'a>(&'a self, site: Option<&'a HostPattern>) -> impl Iterator<Item = &'a Group> {
        self.groups.iter().filter(move |group| site.is_none_or(|site| group.site.as_ref() == Some(site)))
    }

    /// As text, in columns.
    pub fn to_text(&self, site: Option<&HostPattern>) -> String {
        let mut text = String::new();
        for group in self.groups(site) {
            // A reason is a sentence: it stands last and sets no width.
            let plain = group.settings.iter().filter(|setting| setting.key != "why");
            let width = |of: fn(&Setting) -> &str| {
                plain.clone().map(|setting| of(setting).chars().count()).max().unwrap_or(0).min(44)
            };
            let (keys, values) = (width(|setting| &setting.key), width(|setting| &setting.value));
            // Infallible: a String takes everything.
            let _ = writeln!(text, "{}", group.title);
            for Setting { key, value, origin } in &group.settings {
                let _ = writeln!(text, "  {key:keys$}  {value:values$}  {origin}");
            }
            text.push('\n');
        }
        text
    }
}

/// Makes a listed setting readable.
fn readable(key: String, listed: &Listed) -> Setting {
    let Some((span, layer)) = &listed.said else {
        return Setting { key, value: listed.default.to_owned(), origin: "built-in default".to_owned() };
    };
    let name = key.rsplit_once('.').map_or(key.as_str(), |(_, name)| name).trim_matches('"');
    let is_header = key.contains("headers.");
    let value = if is_header && is_secret_header(name) { "\"***\"".to_owned() } else { compact(span.text()) };
    let origin = match layer {
        Layer::Own => span.file_and_line(),
        Layer::Defaults => format!("[defaults], {}", span.file_and_line()),
        Layer::Preset => span.source.name.clone(),
    };
    Setting { key, value, origin }
}

/// A value on one line.
fn compact(text: &str) -> String {
    fn write(value: &DeValue<'_>, out: &mut String) {
        match value {
            DeValue::String(text) => out.push_str(&serde_json::Value::from(text.as_ref()).to_string()),
            DeValue::Integer(number) => out.push_str(&number.to_string()),
            DeValue::Float(number) => out.push_str(&number.to_string()),
            DeValue::Boolean(flag) => out.push_str(if *flag { "true" } else { "false" }),
            DeValue::Datetime(date) => out.push_str(&date.to_string()),
            DeValue::Array(list) => {
                out.push('[');
                for (index, item) in list.iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { ", " });
                    write(item.get_ref(), out);
                }
                out.push(']');
            }
            DeValue::Table(table) => {
                out.push('{');
                for (index, (key, item)) in table.iter().enumerate() {
                    out.push_str(if index == 0 { " " } else { ", " });
                    out.push_str(key.get_ref());
                    out.push_str(" = ");
                    write(item.get_ref(), out);
                }
                out.push_str(" }");
            }
        }
    }
    let mut out = String::new();
    match DeValue::parse(text.trim()) {
        Ok(value) => write(value.get_ref(), &mut out),
        Err(_) => out.push_str(&text.split_whitespace().collect::<Vec<_>>().join(" ")),
    }
    out
}
