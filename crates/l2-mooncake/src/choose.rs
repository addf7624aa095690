//! Which way there is.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_mooncake_sys::{Library, Setup};

use crate::config::{Mode, MooncakeConfig};
use crate::route::{Code, Route};
use crate::{Attach, Capi};

const OP: &str = "open Mooncake store";
/// How long a master may take to accept a connection.
const MASTER: Duration = Duration::from_secs(2);

/// The way that the settings ask for, with a master behind it.
pub(crate) fn route(config: &MooncakeConfig, run: u64) -> Result<Arc<dyn Route>> {
    if let Some(master) = &config.master_server_address {
        reachable(master)?;
    }
    let route: Arc<dyn Route> = match config.mode {
        Mode::Attach => Arc::new(attach(config, run)?),
        Mode::Capi => Arc::new(capi(config)?),
        Mode::Auto => match (attach(config, run), &config.library) {
            (Ok(attach), _) => Arc::new(attach),
            (Err(e), Some(library)) => {
                tracing::info!(adapter = %config.name, "not attached ({e}); {} is tried", library.display());
                Arc::new(capi(config).map_err(|c| c.with("attach", e))?)
            }
            (Err(e), None) => return Err(e.with("library", "none is named, so there is no other way")),
        },
    };
    // An answer from the master, and not only from whoever is in between.
    let asked = route.exists(&["kvstrata-canary".to_owned()])?;
    match asked.first() {
        Some(Err(code @ (Code::RPC | Code::RPC_TIMEOUT))) => {
            route.close();
            Err(code.error(OP).with("way", route.describe()))
        }
        _ => Ok(route),
    }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr> {
    let found = text
        .to_socket_addrs()
        .map_err(|e| e.to_string())
        .and_then(|mut all| all.next().ok_or("no address".into()));
    found.map_err(|why| Error::invalid(OP, format!("a host and a port are expected: {why}")).with(key, text))
}

/// Mooncake's own client does not fail on a master that is not there: it waits, or takes another one.
fn reachable(master: &str) -> Result<()> {
    // With several (high availability) one is enough; a scheme names a directory of masters, which only the client reads.
    if master.contains("://") {
        return Ok(());
    }
    let mut last = None;
    for one in master.split([';', ',']).filter(|m| !m.is_empty()) {
        match TcpStream::connect_timeout(&address("master_server_address", one)?, MASTER) {
            Ok(_) => return Ok(()),
            Err(e) => last = Some(e),
        }
    }
    let why = last.map_or_else(|| "no address is given".to_owned(), |e| e.to_string());
    Err(Error::new(ErrorKind::Unavailable, OP, format!("the master is not reachable ({why})"))
        .with("master_server_address", master))
}

fn attach(config: &MooncakeConfig, run: u64) -> Result<Attach> {
    let client = address("client_address", &config.client_address)?;
    if !client.ip().is_loopback() {
        let why = "memory can be handed over on the same machine only: a loopback address is expected";
        return Err(Error::invalid(OP, why).with("client_address", client));
    }
    let preferred = if config.prefer_local_alloc { config.local_hostname.clone() } else { None };
    Attach::connect(client, preferred, run)
}

fn capi(config: &MooncakeConfig) -> Result<Capi> {
    let missing = |key: &'static str| {
        Error::invalid(OP, format!("the way through a library needs {key}")).with("mode", config.mode.name())
    };
    let path = config.library.as_ref().ok_or_else(|| missing("library"))?;
    let setup = Setup {
        local_hostname: config.local_hostname.as_deref().ok_or_else(|| missing("local_hostname"))?,
        metadata_server: config.metadata_server.as_deref().ok_or_else(|| missing("metadata_server"))?,
        global_segment_size: config.global_segment_size,
        local_buffer_size: config.local_buffer_size,
        protocol: &config.protocol,
        device_name: &config.device_name,
        master_server_address: config
            .master_server_address
            .as_deref()
            .ok_or_else(|| missing("master_server_address"))?,
    };
    let library = Library::load(path)?;
    Capi::connect(&library, path, &setup, config.prefer_local_alloc)
}
