//! A user's own `libmooncake_store.so`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_mem::Region;

use crate::{Source, Target};

/// As in `store_c.h`; the layout has been the same since the interface was published.
#[repr(C)]
struct ReplicateConfig {
    replica_num: usize,
    with_soft_pin: c_int,
    with_hard_pin: c_int,
    preferred_segments: *const *const c_char,
    preferred_segments_count: usize,
}

type Handle = *mut c_void;

/// The functions of `store_c.h` that are used here.
struct Calls {
    create: unsafe extern "C" fn() -> Handle,
    destroy: unsafe extern "C" fn(Handle),
    setup: unsafe extern "C" fn(
        Handle,
        *const c_char,
        *const c_char,
        u64,
        u64,
        *const c_char,
        *const c_char,
        *const c_char,
    ) -> c_int,
    hostname: unsafe extern "C" fn(Handle, *mut c_char, usize) -> c_int,
    register_buffer: unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int,
    unregister_buffer: unsafe extern "C" fn(Handle, *mut c_void) -> c_int,
    batch_put_from: unsafe extern "C" fn(
        Handle,
        *const *const c_char,
        *mut *mut c_void,
        *const usize,
        usize,
        *const ReplicateConfig,
        *mut c_int,
    ) -> c_int,
    batch_get_into: unsafe extern "C" fn(
        Handle,
        *const *const c_char,
        *mut *mut c_void,
        *const usize,
        usize,
        *mut i64,
    ) -> c_int,
    batch_is_exist: unsafe extern "C" fn(Handle, *const *const c_char, usize, *mut c_int) -> c_int,
    get_size: unsafe extern "C" fn(Handle, *const c_char) -> i64,
    remove: unsafe extern "C" fn(Handle, *const c_char, c_int) -> c_int,
}

/// The library, open.
pub struct Library {
    calls: Calls,
    // Unloaded after everything that was made from it.
    _library: libloading::Library,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Library(libmooncake_store)")
    }
}

const OPEN: &str = "open Mooncake library";

impl Library {
    /// Opens the library at `path`, or the one that the loader finds under this name.
    ///
    /// Loading a library runs its code: whoever names the file vouches that it is Mooncake's store library, or one with the
    /// same interface (`store_c.h`), as with a program to be started.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be loaded or lacks a function, with what the loader says.
    pub fn load(path: &Path) -> Result<Arc<Self>> {
        let absent = |e: &dyn fmt::Display| {
            Error::new(ErrorKind::Unavailable, OPEN, e.to_string()).with("library", path.display())
        };
        // SAFETY: whoever names the file vouches for it.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| absent(&e))?;
        macro_rules! calls {
            ($($field:ident = $symbol:literal),* $(,)?) => {
                Calls {
                    $($field: {
                        // SAFETY: the types above are those of `store_c.h`, and so are the file's: see above.
                        let found = unsafe { library.get($symbol.as_bytes()) };
                        *found.map_err(|e| absent(&format_args!("{}: {e}", $symbol)))?
                    },)*
                }
            };
        }
        let calls = calls! {
            create = "mooncake_store_create",
            destroy = "mooncake_store_destroy",
            setup = "mooncake_store_setup",
            hostname = "mooncake_store_get_hostname",
            register_buffer = "mooncake_store_register_buffer",
            unregister_buffer = "mooncake_store_unregister_buffer",
            batch_put_from = "mooncake_store_batch_put_from",
            batch_get_into = "mooncake_store_batch_get_into",
            batch_is_exist = "mooncake_store_batch_is_exist",
            get_size = "mooncake_store_get_size",
            remove = "mooncake_store_remove",
        };
        Ok(Arc::new(Self { calls, _library: library }))
    }
}

/// What a store is set up with; the names are those of `mooncake_store_setup`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub struct Setup<'a> {
    pub local_hostname: &'a str,
    pub metadata_server: &'a str,
    pub global_segment_size: u64,
    pub local_buffer_size: u64,
    pub protocol: &'a str,
    pub device_name: &'a str,
    pub master_server_address: &'a str,
}

/// A client of a cluster, in this process. Its calls block, and a buffer is the library's until its call has returned.
pub struct Store {
    handle: Handle,
    library: Arc<Library>,
}

// SAFETY: the handle is a pointer to Mooncake's client, whose calls may come from any thread.
unsafe impl Send for Store {}
// SAFETY: as above, and from several at once: its own Python and C++ users do that.
unsafe impl Sync for Store {}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store(libmooncake_store)")
    }
}

/// A text as C has it.
fn c(operation: &'static str, name: &'static str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::invalid(operation, "the C interface takes no text with a NUL")
            .with(name, format_args!("{text:?}"))
    })
}

fn c_keys(operation: &'static str, keys: &[String]) -> Result<Vec<CString>> {
    keys.iter().map(|k| c(operation, "key", k)).collect()
}

/// Every call that answers per key answers for as many as it was asked.
fn same(operation: &'static str, keys: usize, buffers: usize) -> Result<()> {
    if keys == buffers {
        return Ok(());
    }
    Err(Error::invalid(operation, "there is one buffer for each key")
        .with("keys", keys)
        .with("buffers", buffers))
}

fn whole_call(operation: &'static str, rc: c_int) -> Result<()> {
    if rc == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, operation, "the library refused the whole call").with("code", rc))
}

impl Store {
    /// Connects to a cluster.
    ///
    /// # Errors
    /// `Invalid` for a text with a NUL; `Unavailable` if the library cannot set up, with its code.
    pub fn connect(library: &Arc<Library>, setup: &Setup<'_>) -> Result<Self> {
        const OP: &str = "set Mooncake store up";
        let texts = [
            ("local_hostname", setup.local_hostname),
            ("metadata_server", setup.metadata_server),
            ("protocol", setup.protocol),
            ("device_name", setup.device_name),
            ("master_server_address", setup.master_server_address),
        ];
        let [host, metadata, protocol, device, master] = texts.map(|(name, text)| c(OP, name, text));
        let (host, metadata, protocol, device, master) = (host?, metadata?, protocol?, device?, master?);
        // SAFETY: takes nothing.
        let handle = unsafe { (library.calls.create)() };
        if handle.is_null() {
            return Err(Error::new(ErrorKind::Unavailable, OP, "the library made no store"));
        }
        let store = Self { handle, library: Arc::clone(library) };
        // SAFETY: the handle is live, and the texts outlive the call.
        let rc = unsafe {
            (library.calls.setup)(
                handle,
                host.as_ptr(),
                metadata.as_ptr(),
                setup.global_segment_size,
                setup.local_buffer_size,
                protocol.as_ptr(),
                device.as_ptr(),
                master.as_ptr(),
            )
        };
        match rc {
            0 => Ok(store),
            rc => {
                Err(Error::new(ErrorKind::Unavailable, OP, "the library could not set up").with("code", rc))
            }
        }
    }

    /// The name under which the cluster knows this client's own segment.
    ///
    /// # Errors
    /// `Io` if the library does not say.
    pub fn hostname(&self) -> Result<String> {
        let mut text = [0u8; 256];
        // SAFETY: the handle is live, and the buffer is as long as is said.
        let rc = unsafe { (self.library.calls.hostname)(self.handle, text.as_mut_ptr().cast(), text.len()) };
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        if rc < 0 || end == 0 {
            return whole_call("ask for hostname", if rc < 0 { rc } else { -1 }).map(|()| String::new());
        }
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// Makes a region known to the transport; the result is the library's code, 0 for success.
    pub fn register(&self, region: &dyn Region) -> i32 {
        let base = region.base().as_ptr().cast();
        // SAFETY: a region is mapped for as long as it lives; whoever registers it keeps it, or unregisters it first.
        unsafe { (self.library.calls.register_buffer)(self.handle, base, region.len()) }
    }

    /// Undoes [`Self::register`].
    pub fn unregister(&self, region: &dyn Region) -> i32 {
        // SAFETY: the handle is live; the pointer is only looked up.
        unsafe { (self.library.calls.unregister_buffer)(self.handle, region.base().as_ptr().cast()) }
    }

    /// Stores a batch; per key 0 or a negative code. With `preferred` on that segment, if it has room.
    ///
    /// # Errors
    /// `Invalid` for a key with a NUL or lists of different lengths; `Io` if the library refuses the whole call.
    pub fn put_from(
        &self,
        keys: &[String],
        from: &[Source<'_>],
        preferred: Option<&str>,
    ) -> Result<Vec<i32>> {
        const OP: &str = "put batch";
        same(OP, keys.len(), from.len())?;
        let keys = c_keys(OP, keys)?;
        let names: Vec<_> = keys.iter().map(|k| k.as_ptr()).collect();
        let mut at: Vec<_> = from.iter().map(Source::as_ptr).collect();
        let sizes: Vec<_> = from.iter().map(Source::len).collect();
        let segment = preferred.map(|s| c(OP, "preferred_segment", s)).transpose()?;
        let segments: Vec<_> = segment.iter().map(|s| s.as_ptr()).collect();
        let config = ReplicateConfig {
            replica_num: 1,
            with_soft_pin: 0,
            with_hard_pin: 0,
            preferred_segments: segments.as_ptr(),
            preferred_segments_count: segments.len(),
        };
        let mut codes = vec![-1; names.len()];
        // SAFETY: each list has as many entries as is said, and each source its bytes, which are only read.
        let rc = unsafe {
            (self.library.calls.batch_put_from)(
                self.handle,
                names.as_ptr(),
                at.as_mut_ptr(),
                sizes.as_ptr(),
                names.len(),
                &raw const config,
                codes.as_mut_ptr(),
            )
        };
        whole_call(OP, rc).map(|()| codes)
    }

    /// Loads a batch; per key the object's bytes or a negative code.
    ///
    /// # Errors
    /// As [`Self::put_from`].
    pub fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<Vec<i64>> {
        const OP: &str = "get batch";
        same(OP, keys.len(), to.len())?;
        let keys = c_keys(OP, keys)?;
        let names: Vec<_> = keys.iter().map(|k| k.as_ptr()).collect();
        let mut at: Vec<_> = to.iter().map(Target::as_ptr).collect();
        let sizes: Vec<_> = to.iter().map(Target::len).collect();
        let mut codes = vec![-1; names.len()];
        // SAFETY: each list has as many entries as is said, and each target is room of its own for that many bytes.
        let rc = unsafe {
            (self.library.calls.batch_get_into)(
                self.handle,
                names.as_ptr(),
                at.as_mut_ptr(),
                sizes.as_ptr(),
                names.len(),
                codes.as_mut_ptr(),
            )
        };
        whole_call(OP, rc).map(|()| codes)
    }

    /// Whether objects are there; per key 1, 0 or a negative code.
    ///
    /// # Errors
    /// As [`Self::put_from`].
    pub fn exists(&self, keys: &[String]) -> Result<Vec<i32>> {
        const OP: &str = "look batch up";
        let keys = c_keys(OP, keys)?;
        let names: Vec<_> = keys.iter().map(|k| k.as_ptr()).collect();
        let mut codes = vec![-1; names.len()];
        // SAFETY: both lists have as many entries as is said.
        let rc = unsafe {
            (self.library.calls.batch_is_exist)(self.handle, names.as_ptr(), names.len(), codes.as_mut_ptr())
        };
        whole_call(OP, rc).map(|()| codes)
    }

    /// The size of an object, or a negative code.
    ///
    /// # Errors
    /// `Invalid` for a key with a NUL.
    pub fn size(&self, key: &str) -> Result<i64> {
        let key = c("ask for size", "key", key)?;
        // SAFETY: the handle is live, and the key outlives the call.
        Ok(unsafe { (self.library.calls.get_size)(self.handle, key.as_ptr()) })
    }

    /// Removes an object, leased or not; 0 or a negative code.
    ///
    /// # Errors
    /// `Invalid` for a key with a NUL.
    pub fn remove(&self, key: &str) -> Result<i32> {
        let key = c("remove object", "key", key)?;
        // SAFETY: the handle is live, and the key outlives the call.
        Ok(unsafe { (self.library.calls.remove)(self.handle, key.as_ptr(), 1) })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: nobody has the handle any more, and it is destroyed once.
        unsafe { (self.library.calls.destroy)(self.handle) }
    }
}
