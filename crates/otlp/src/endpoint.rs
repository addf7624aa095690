//! Where a collector is.

use std::fmt;
use std::str::FromStr;

/// A collector's address: `http://HOST[:PORT][/PATH]`. The port is 4318 unless given, the path `/v1/traces`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// As sockets take it.
    pub(crate) address: String,
    pub(crate) path: String,
}

/// An address that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadEndpoint;

impl fmt::Display for BadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a collector is at http://HOST[:PORT][/PATH]; its port for OTLP over HTTP is 4318 by default",
        )
    }
}

impl std::error::Error for BadEndpoint {}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let rest = text.strip_prefix("http://").ok_or(BadEndpoint)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '@' || c == '?' || c == '#';
        if host.is_empty() || rest.contains(odd) {
            return Err(BadEndpoint);
        }
        // The colons of an IPv6 address are within brackets.
        let port = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let address = match port {
            None => format!("{host}:4318"),
            Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => {
                host.to_owned()
            }
            Some(_) => return Err(BadEndpoint),
        };
        let path = if path.is_empty() { "/v1/traces".to_owned() } else { format!("/{path}") };
        Ok(Self { address, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_usual() {
        let of = |text: &str| text.parse::<Endpoint>().map(|e| (e.address, e.path));
        let is = |address: &str, path: &str| Ok((address.to_owned(), path.to_owned()));
        assert_eq!(of("http://localhost"), is("localhost:4318", "/v1/traces"));
        assert_eq!(of("http://127.0.0.1:9/"), is("127.0.0.1:9", "/v1/traces"));
        assert_eq!(of("http://[::1]:9/a/b"), is("[::1]:9", "/a/b"));
        assert_eq!(of("http://[::1]"), is("[::1]:4318", "/v1/traces"));
        for bad in [
            "",
            "localhost:4318",
            "https://x",
            "http://",
            "http://:1",
            "http://x:0",
            "http://x:y",
            "http://a b",
            "http://u@x",
        ] {
            assert_eq!(of(bad), Err(BadEndpoint), "{bad}");
        }
    }
}
