//! `kvstrata serve` from outside: what its HTTP interface shows of known traffic, and what it makes of bad requests.

mod deploy;
mod hostile;
mod killed;
mod metrics;
mod server;
