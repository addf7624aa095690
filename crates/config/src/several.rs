//! Several paths in the settings of one adapter.
//!
//! `paths` is a text of paths separated by commas, or a list of paths and of objects with `path` and perhaps `weight`,
//! `max_capacity_gb`, `device` or `devices`. `path_sharding` says how one is chosen: `by_gpu`, `by_uuid`, `map` or `by_key`;
//! unless set, `map` if a device is named, and the adapter's own rule else. What is said of the adapter's whole capacity is split by weight.

use kvstrata_core::{Error, Result};
use kvstrata_policy::{Device, Place, Sharding, path_list};
use serde_json::{Map, Value};

use crate::adapters::AdapterSettings;
use crate::registry::unknown_key;
use crate::size::ByteSize;

const OP: &str = "read adapter settings";

/// The keys that are read here.
pub(crate) const KEYS: [&str; 2] = ["paths", "path_sharding"];

/// One of several paths.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct OnePath {
    pub(crate) path: String,
    pub(crate) weight: u32,
    pub(crate) max_capacity_gb: Option<f64>,
    pub(crate) devices: Vec<Device>,
}

/// Several paths and how one is chosen.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Several {
    pub(crate) sharding: Sharding,
    pub(crate) paths: Vec<OnePath>,
}

/// Whether the settings have more than one path, as far as that can be seen without reading them.
pub(crate) fn has_several(keys: &Map<String, Value>) -> bool {
    ["paths", "gds_path"].into_iter().any(|key| match keys.get(key) {
        Some(Value::String(text)) => path_list(text).len() > 1,
        Some(Value::Array(list)) => list.len() > 1,
        _ => false,
    })
}

/// What the settings say of several paths; `None` if they have none of the keys. `rule` is how one is chosen unless it is
/// said or a device is named.
pub(crate) fn read(keys: &Map<String, Value>, rule: Sharding) -> Result<Option<Several>> {
    let bad = |key: &'static str, m: String| Error::invalid(OP, m).with("key", key);
    let given = keys.get("path_sharding").filter(|v| !v.is_null());
    let Some(list) = keys.get("paths").filter(|v| !v.is_null()) else {
        // With a single path there is nothing to choose, but the name is checked.
        return given.map_or(Ok(None), |value| sharding(value).map(|_| None));
    };
    if keys.contains_key("base_path") {
        return Err(bad("paths", "an adapter has either paths or a base_path".into()));
    }
    let paths: Vec<OnePath> = match list {
        Value::String(text) => path_list(text).into_iter().map(plain).collect(),
        Value::Array(list) => list.iter().map(one).collect::<Result<_, _>>().map_err(|m| bad("paths", m))?,
        _ => return Err(bad("paths", "paths separated by commas, or a list, are expected".into())),
    };
    if paths.is_empty() {
        return Err(bad("paths", "at least one path is expected".into()));
    }
    for (i, one) in paths.iter().enumerate() {
        let before = &paths[..i];
        if before.iter().any(|other| other.path == one.path) {
            return Err(bad("paths", format!("{} is there twice", one.path)));
        }
        if let Some(device) =
            one.devices.iter().find(|d| before.iter().any(|other| other.devices.contains(d)))
        {
            return Err(bad("paths", format!("{device} has two paths")));
        }
    }
    let named = paths.iter().any(|one| !one.devices.is_empty());
    let sharding = match given {
        Some(value) => sharding(value)?,
        None if named => Sharding::Map,
        None => rule,
    };
    if (sharding == Sharding::Map) != named {
        let m = "with map, and with no other, paths name the devices that write to them (device, devices)";
        return Err(bad("path_sharding", m.into()));
    }
    Ok(Some(Several { sharding, paths }))
}

fn sharding(value: &Value) -> Result<Sharding> {
    let name = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Sharding::by_name(&name).map_err(|e| Error::invalid(OP, e.to_string()).with("key", "path_sharding"))
}

fn plain(path: &str) -> OnePath {
    OnePath { path: path.to_owned(), weight: 1, max_capacity_gb: None, devices: Vec::new() }
}

fn one(value: &Value) -> Result<OnePath, String> {
    let path = |value: &Value| match value.as_str().map(path_list) {
        Some(list) if list.len() == 1 => Ok(list[0].to_owned()),
        _ => Err(format!("a path is a text that is not empty, and this is {value}")),
    };
    let Value::Object(keys) = value else { return path(value).map(|path| plain(&path)) };
    let mut out = plain(&path(keys.get("path").unwrap_or(&Value::Null))?);
    for (key, value) in keys {
        match key.as_str() {
            "path" => {}
            "weight" => {
                let weight = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
                out.weight = weight.ok_or("weight: a whole number of at least 1 is expected")?;
            }
            "max_capacity_gb" => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let size = ByteSize::parse_in(&text, 1 << 30).map_err(|e| format!("max_capacity_gb: {e}"))?;
                out.max_capacity_gb = Some(size.gib());
            }
            "device" => out.devices.push(device(value)?),
            "devices" => {
                let list = value.as_array().ok_or("devices: a list is expected")?;
                for value in list {
                    out.devices.push(device(value)?);
                }
            }
            _ => {
                let known = ["path", "weight", "max_capacity_gb", "device", "devices"];
                return Err(format!("{key}: {}", unknown_key(key, known.map(str::to_owned).into_iter())));
            }
        }
    }
    Ok(out)
}

fn device(value: &Value) -> Result<Device, String> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(|e| format!("device {text}: {e}"))
}

impl Several {
    /// The settings of each path's store, with its place among the others. `gib` are keys of sizes that are said of the
    /// whole and split by weight; `maps` are objects of such sizes. `path` is the key of a store's own directory.
    pub(crate) fn each(
        &self,
        settings: &AdapterSettings,
        gib: &[&str],
        maps: &[&str],
        path: &str,
    ) -> Vec<(Place, AdapterSettings)> {
        let all: f64 = self.paths.iter().map(|one| f64::from(one.weight)).sum();
        let each = |one: &OnePath| {
            let share = f64::from(one.weight) / all;
            let split = |value: &mut Value| {
                if let Some(size) = value.as_f64() {
                    *value = (size * share).into();
                }
            };
            let mut keys = settings.keys().clone();
            keys.retain(|key, _| !KEYS.contains(&key.as_str()));
            for key in gib {
                keys.get_mut(*key).into_iter().for_each(split);
            }
            for map in maps {
                let sizes = keys.get_mut(*map).and_then(Value::as_object_mut);
                sizes.into_iter().flat_map(|sizes| sizes.values_mut()).for_each(split);
            }
            keys.insert(path.into(), one.path.clone().into());
            if let Some(gib) = one.max_capacity_gb {
                keys.insert("max_capacity_gb".into(), gib.into());
            }
            let place = Place { name: one.path.clone(), weight: one.weight, devices: one.devices.clone() };
            (place, AdapterSettings::from(keys))
        };
        self.paths.iter().map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn several(value: Value) -> Result<Option<Several>, String> {
        read(value.as_object().unwrap(), Sharding::ByKey).map_err(|e| e.to_string())
    }

    #[test]
    fn lists_and_texts_are_read() {
        let two = several(json!({"paths": " file:///a , /b,"})).unwrap().unwrap();
        assert_eq!(two, Several { sharding: Sharding::ByKey, paths: vec![plain("/a"), plain("/b")] });
        let two = several(
            json!({"paths": ["/a", {"path": "/b", "weight": 3, "max_capacity_gb": "512MiB"}], "path_sharding": "by_gpu"}),
        );
        let two = two.unwrap().unwrap();
        assert_eq!(two.sharding, Sharding::ByGpu);
        assert_eq!(two.paths[1], OnePath { weight: 3, max_capacity_gb: Some(0.5), ..plain("/b") });
        let map = several(
            json!({"paths": [{"path": "/a", "device": 0}, {"path": "/b", "devices": [1, "cuda:2"]}]}),
        );
        let map = map.unwrap().unwrap();
        assert_eq!((map.sharding, map.paths[1].devices.len()), (Sharding::Map, 2));
        assert_eq!(several(json!({"base_path": "/a", "path_sharding": "by_uuid"})), Ok(None));
    }

    #[test]
    fn bad_ones_are_named() {
        for (value, says) in [
            (json!({"paths": " , "}), "at least one path"),
            (json!({"paths": []}), "at least one path"),
            (json!({"paths": 3}), "a list"),
            (json!({"paths": ["/a", ""]}), "not empty"),
            (json!({"paths": "/a,/a"}), "/a is there twice"),
            (json!({"paths": "/a", "base_path": "/b"}), "either"),
            (json!({"paths": "/a,/b", "path_sharding": "by_rank"}), "by_gpu, by_uuid, map, by_key"),
            (json!({"base_path": "/b", "path_sharding": "by_rank"}), "by_gpu, by_uuid, map, by_key"),
            (json!({"paths": "/a,/b", "path_sharding": "map"}), "name the devices"),
            (
                json!({"paths": [{"path": "/a", "device": 0}, "/b"], "path_sharding": "by_key"}),
                "name the devices",
            ),
            (
                json!({"paths": [{"path": "/a", "device": 0}, {"path": "/b", "device": "cuda:0"}]}),
                "two paths",
            ),
            (json!({"paths": [{"path": "/a", "device": "cpu"}]}), "UUID"),
            (json!({"paths": [{"path": "/a", "weight": 0}]}), "weight"),
            (json!({"paths": [{"path": "/a", "wieght": 1}]}), "weight"),
            (json!({"paths": [{"weight": 1}]}), "a path is a text"),
        ] {
            let e = several(value.clone()).unwrap_err();
            assert!(e.contains(says), "{value}: {e}");
        }
    }

    #[test]
    fn what_is_said_of_the_whole_is_split_by_weight() {
        let settings = json!({"type": "fs", "paths": [{"path": "/a", "weight": 1}, {"path": "/b", "weight": 3}, {"path": "/c", "weight": 4, "max_capacity_gb": 9}],
            "max_capacity_gb": 16.0, "quotas": {"t": 8.0}});
        let settings = AdapterSettings::from(settings.as_object().unwrap().clone());
        let each = read(settings.keys(), Sharding::ByKey).unwrap().unwrap().each(
            &settings,
            &["max_capacity_gb"],
            &["quotas"],
            "base_path",
        );
        let sizes: Vec<_> = each.iter().map(|(_, s)| s.keys()["max_capacity_gb"].as_f64().unwrap()).collect();
        assert_eq!(sizes, [2.0, 6.0, 9.0]);
        let quotas: Vec<_> = each.iter().map(|(_, s)| s.keys()["quotas"]["t"].as_f64().unwrap()).collect();
        assert_eq!(quotas, [1.0, 3.0, 4.0]);
        assert!(each.iter().all(|(_, s)| !s.keys().contains_key("paths")));
        assert_eq!((each[1].0.name.as_str(), each[1].0.weight), ("/b", 3));
    }
}
