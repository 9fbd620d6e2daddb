//! `[admin]`, and the path for load balancers in `[listen]`: what may be asked about the edge, and where.

use std::net::SocketAddr;

use super::text::{self, Fault};
use super::{Compiler, list};
use crate::addr::{ListenAddr, is_private};
use crate::config::file;
use crate::config::read::At;
use crate::config::report::{Code, Diagnostic};
use crate::site::policy::{AdminListen, AdminPolicy};

impl Compiler<'_> {
    /// `[admin]` and `listen.health`.
    pub(super) fn admin(&mut self, admin: Option<&file::Admin>, listen: &file::Listen) -> AdminPolicy {
        let place = admin.and_then(|admin| admin.listen.as_ref()).and_then(|at| self.admin_listen(at));
        let metrics = list(admin.and_then(|admin| admin.metrics.as_ref()))
            .iter()
            .filter_map(|entry| self.admin_metrics(entry))
            .collect();
        let health = listen.health.as_ref().and_then(|at| self.health_path(at));
        AdminPolicy { listen: place.unwrap_or_default(), metrics, health }
    }

    /// `admin.listen`.
    fn admin_listen(&mut self, at: &At<String>) -> Option<AdminListen> {
        if at.value == "off" {
            return Some(AdminListen::Off);
        }
        let address = self.take(text::listen(&at.value, "admin"), Code::Listen, at, "\"listen\" of [admin]")?;
        if !address.is_loopback() {
            let message = format!("\"listen\" of [admin] cannot be \"{}\"", at.value);
            let diagnostic = Diagnostic::at(Code::AdminReachable, &at.span, message)
                .label("others may reach it, and it names clients")
                .help("write \"unix:/run/tidegate/admin.sock\" or \"127.0.0.1:9465\"; for a Prometheus elsewhere add its address to \"metrics\"");
            self.push(diagnostic);
            return None;
        }
        Some(AdminListen::At(address))
    }

    /// One of `admin.metrics`.
    fn admin_metrics(&mut self, at: &At<String>) -> Option<SocketAddr> {
        let place = "\"metrics\" of [admin]";
        let tcp = text::listen(&at.value, "metrics").and_then(|address| match address {
            ListenAddr::Tcp(address) => Ok(address),
            ListenAddr::Unix(_) | ListenAddr::Systemd(_) => Err(Fault {
                what: "not an IP address and a port".into(),
                help: Some(
                    "write an address such as \"10.0.0.1:9464\"; the unix socket of \"listen\" serves /metrics too"
                        .into(),
                ),
            }),
        });
        let address = self.take(tcp, Code::Listen, at, place)?;
        if !is_private(address.ip()) {
            let message = format!("\"{}\" in {place} is no private address", at.value);
            let diagnostic = Diagnostic::at(Code::MetricsReachable, &at.span, message)
                .label("whoever reaches it reads how busy each site is")
                .help("write the address of one private interface, or let a firewall admit Prometheus alone");
            self.push(diagnostic);
        }
        Some(address)
    }

    /// `listen.health`.
    fn health_path(&mut self, at: &At<String>) -> Option<Box<str>> {
        let path = self.take(text::prefix(&at.value), Code::Path, at, "\"health\" of [listen]")?;
        if path.is_empty() {
            let message = "\"health\" of [listen] takes the first page from every site";
            let diagnostic = Diagnostic::at(Code::Path, &at.span, message)
                .help("write a path that no site has, such as \"/.well-known/tidegate/health\"");
            self.push(diagnostic);
            return None;
        }
        Some(path)
    }
}
