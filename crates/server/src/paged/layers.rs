//! Which of the tensors that an engine registers are a layer's, and how each is to be looked at.
//!
//! vLLM's are a tensor for each layer. SGLang's hint `kv_list_layout` says what its list is: `unified`, a tensor for each
//! layer; `k_v`, the keys of all layers and then the values of all, each a run of pages that the hint `tokens_per_block` cuts
//! into blocks; without it and with `tokens_per_block`, such runs with one plane for each layer (MLA). What else there may be
//! is refused.

use kvstrata_core::Result;

use super::invalid;
use crate::api::{DeviceTensor, Hint, LmcacheDriven};

/// The layers of a registration.
#[derive(Debug)]
pub(super) struct Layers {
    /// The tensors of each: one, or keys and values apart.
    pub(super) of: Vec<Vec<DeviceTensor>>,
    /// Heads come before tokens within a block, where a tensor's shape leaves that open.
    pub(super) heads_first: bool,
}

fn hint<'a>(r: &'a LmcacheDriven, name: &str) -> Option<&'a Hint> {
    r.hints.iter().find(|(n, _)| n == name).map(|(_, hint)| hint)
}

fn word<'a>(r: &'a LmcacheDriven, name: &'static str) -> Result<Option<&'a str>> {
    match hint(r, name) {
        None => Ok(None),
        Some(Hint::Text(text)) => Ok(Some(text)),
        Some(Hint::Int(n)) => Err(invalid("that has to be a word", name, n)),
    }
}

/// vLLM's.
pub(super) fn vllm(r: &LmcacheDriven) -> Result<Layers> {
    let heads_first = match word(r, "kv_layout")? {
        // LMCache's own default on a machine without a device.
        None | Some("HND" | "BLHNC") => true,
        Some("NHD" | "BLNHC") => false,
        Some(other) => return Err(invalid("accepted are NHD, HND, BLNHC and BLHNC", "kv_layout", other)),
    };
    Ok(Layers { of: r.tensors.iter().map(|t| vec![t.clone()]).collect(), heads_first })
}

/// SGLang's.
pub(super) fn sglang(r: &LmcacheDriven) -> Result<Layers> {
    let block = match hint(r, "tokens_per_block") {
        None => None,
        Some(Hint::Int(n)) if *n > 0 => Some(*n),
        Some(other) => {
            return Err(invalid(
                "that has to be a positive number",
                "tokens_per_block",
                format_args!("{other:?}"),
            ));
        }
    };
    let of = match (word(r, "kv_list_layout")?, block) {
        (Some("unified"), _) => r.tensors.iter().map(|t| vec![t.clone()]).collect(),
        (Some("k_v"), Some(block)) => {
            if !r.tensors.len().is_multiple_of(2) {
                let m = "there are as many tensors of values as of keys";
                return Err(invalid(m, "kv_caches", r.tensors.len()));
            }
            let (keys, values) = r.tensors.split_at(r.tensors.len() / 2);
            let layer = |(k, v): (&DeviceTensor, &DeviceTensor)| {
                Ok(vec![pages(k, block, false)?, pages(v, block, false)?])
            };
            keys.iter().zip(values).map(layer).collect::<Result<_>>()?
        }
        (None, Some(block)) => {
            r.tensors.iter().map(|t| Ok(vec![pages(t, block, true)?])).collect::<Result<_>>()?
        }
        (layout, block) => {
            let m = "accepted are 'unified', 'k_v' with tokens_per_block, and none with tokens_per_block";
            return Err(invalid(m, "kv_list_layout", layout.unwrap_or("none"))
                .with("tokens_per_block", block.map_or("none".to_owned(), |n| n.to_string())));
        }
    };
    Ok(Layers { of, heads_first: false })
}

/// A run of pages, `(tokens, heads, head size)`, cut into blocks; `one_head` leaves the axis of heads out, which has to be 1.
fn pages(t: &DeviceTensor, block: i64, one_head: bool) -> Result<DeviceTensor> {
    let odd = |what: &str| invalid(what, "shape", format_args!("{:?}", t.shape));
    let ([tokens, heads, head], [a, b, c]) = (&t.shape[..], &t.stride[..]) else {
        return Err(odd("such a tensor has an axis of tokens, one of heads and one of a head's elements"));
    };
    if tokens % block != 0 {
        return Err(odd("the tokens have to be whole blocks").with("tokens_per_block", block));
    }
    if one_head && *heads != 1 {
        return Err(odd("without kv_list_layout a token has one head").with("kv_list_layout", "none"));
    }
    let far = a.checked_mul(block).ok_or_else(|| odd("the strides are out of range"))?;
    let (mut shape, mut stride) = (vec![tokens / block, block], vec![far, *a]);
    if !one_head {
        shape.push(*heads);
        stride.push(*b);
    }
    shape.push(*head);
    stride.push(*c);
    Ok(DeviceTensor { shape, stride, ..t.clone() })
}
