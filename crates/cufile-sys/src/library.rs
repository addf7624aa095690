//! Finding the library.

use core::ffi::c_int;
use core::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Calls;

/// The names to ask the loader for, in this order. The first is the one that NVIDIA's packages and containers have.
pub const NAMES: [&str; 3] = ["libcufile.so.0", "libcufile.so", "libcufile.so.1"];

/// Where in a Python's `site-packages` NVIDIA's wheels put the library.
pub const PACKAGE_FOLDERS: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cufile/lib"];

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// The library's file, or a folder that has it. Nothing else is tried then: whoever names a library wants that one.
    pub explicit: Option<PathBuf>,
    /// `site-packages` folders, looked into after the loader's own places.
    pub site_packages: Vec<PathBuf>,
}

impl Search {
    /// What is tried, in order.
    pub fn candidates(&self) -> Vec<PathBuf> {
        if let Some(explicit) = &self.explicit {
            return if explicit.is_dir() {
                NAMES.iter().map(|name| explicit.join(name)).collect()
            } else {
                vec![explicit.clone()]
            };
        }
        let installed = NAMES.iter().map(PathBuf::from);
        let packaged = self.site_packages.iter().flat_map(|site| {
            let folders = PACKAGE_FOLDERS.iter().map(move |folder| site.join(folder));
            folders.flat_map(|folder| NAMES.iter().map(move |name| folder.join(name)))
        });
        // A file that is not there needs no line in the list of what failed.
        installed.chain(packaged.filter(|file| file.exists())).collect()
    }
}

/// The library is not there, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// Each name that was tried, and why it did not do.
    pub tried: Vec<(PathBuf, String)>,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("libcufile cannot be opened: ")?;
        for (i, (path, why)) in self.tried.iter().enumerate() {
            write!(f, "{}{}: {why}", if i == 0 { "" } else { "; " }, path.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Unavailable {}

/// A version of the library, as [`Calls::get_version`] gives it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// 1.
    pub major: u32,
    /// 20.
    pub minor: u32,
}

impl Version {
    fn from_number(number: c_int) -> Self {
        let number = number.unsigned_abs();
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The opened library. It stays loaded for the rest of the process: its threads and its handlers at exit outlive any owner.
#[derive(Debug)]
pub struct Library {
    calls: Calls,
    name: PathBuf,
    version: Version,
}

impl Library {
    /// Opens the first of [`Search::candidates`] that can be, and that has what every version has.
    ///
    /// Opening runs no code of the library beyond its initialisers; [`Self::open_driver`] is what starts it.
    ///
    /// # Safety
    /// What the candidates lead to is NVIDIA's cuFile, or has its interface.
    ///
    /// # Errors
    /// [`Unavailable`], with what each candidate failed with.
    pub unsafe fn open(search: &Search) -> Result<Arc<Self>, Unavailable> {
        let mut tried = Vec::new();
        for name in search.candidates() {
            // SAFETY: the caller says what it is.
            match unsafe { Self::load(&name) } {
                Ok(library) => return Ok(Arc::new(library)),
                Err(why) => tried.push((name, why)),
            }
        }
        Err(Unavailable { tried })
    }

    /// # Safety
    /// As [`Self::open`].
    unsafe fn load(name: &Path) -> Result<Self, String> {
        // SAFETY: the caller says that it is cuFile, whose initialisers may run at any time.
        let library = unsafe { libloading::Library::new(name) }.map_err(|e| e.to_string())?;
        // SAFETY: as above, and it is never unloaded from here on.
        let calls = unsafe { Calls::of(&library) };
        let (Some(_), Some(_), Some(get_version)) = (calls.read, calls.driver_open, calls.get_version) else {
            return Err("it has no cuFileRead, cuFileDriverOpen or cuFileGetVersion".into());
        };
        std::mem::forget(library);
        let mut number: c_int = 0;
        // SAFETY: the number outlives the call.
        let answer = unsafe { get_version(&raw mut number) };
        if !answer.err.is_success() {
            return Err(format!("cuFileGetVersion: {}", answer.err));
        }
        Ok(Self { calls, name: name.to_path_buf(), version: Version::from_number(number) })
    }

    /// Everything it exports.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The name or path that it was opened by.
    pub fn name(&self) -> std::path::Display<'_> {
        self.name.display()
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_in_order_and_an_explicit_one_alone() {
        let strings =
            |s: &Search| -> Vec<String> { s.candidates().iter().map(|p| p.display().to_string()).collect() };
        assert_eq!(strings(&Search::default()), ["libcufile.so.0", "libcufile.so", "libcufile.so.1"]);
        let site = tempfile::tempdir().unwrap();
        let folder = site.path().join("nvidia/cufile/lib");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libcufile.so.0"), "no library").unwrap();
        let search = Search { site_packages: vec![site.path().into(), "nowhere".into()], explicit: None };
        let found = strings(&search);
        assert_eq!(found.len(), 4, "only what exists: {found:?}");
        assert!(found[3].ends_with("nvidia/cufile/lib/libcufile.so.0"), "{found:?}");
        let search = Search { explicit: Some("x/y.so".into()), ..search };
        assert_eq!(strings(&search), ["x/y.so"]);
        let search = Search { explicit: Some(folder.clone()), ..search };
        assert_eq!(strings(&search).len(), 3, "a folder: each name in it");
    }

    #[test]
    fn what_cannot_be_opened_is_named_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libcufile.so.0");
        std::fs::write(&file, "no library").unwrap();
        let search = Search { explicit: Some(file.clone()), ..Search::default() };
        // SAFETY: it is no library at all.
        let absent = unsafe { Library::open(&search) }.unwrap_err();
        assert_eq!(absent.tried.len(), 1);
        let text = absent.to_string();
        let why = &absent.tried[0].1;
        assert!(text.contains("libcufile.so.0") && !why.is_empty() && text.contains(why), "{text}");
    }

    #[test]
    fn another_library_is_refused() {
        let search = Search { explicit: Some("libm.so.6".into()), ..Search::default() };
        // SAFETY: the mathematics library runs nothing when it is loaded, and none of cuFile's names are in it.
        let absent = unsafe { Library::open(&search) }.unwrap_err();
        assert!(absent.to_string().contains("no cuFileRead"), "{absent}");
    }

    #[test]
    fn versions_are_read_as_the_library_counts() {
        let version = Version::from_number(1200);
        assert_eq!((version.major, version.minor), (1, 20));
        assert_eq!(Version::from_number(1151).to_string(), "1.15");
        assert!(Version::from_number(1150) < version);
    }
}
