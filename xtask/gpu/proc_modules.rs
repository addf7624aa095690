//! Preloaded by `cargo xtask test-cufile-host` where the kernel has no `/proc/modules`: libcufile up to 1.20 opens that file
//! again and again until it is there. With this it is there, and empty. For tests only.

use std::ffi::{CStr, c_char, c_void};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

type Open = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void;

/// The C library's own, with one name replaced.
///
/// # Safety
/// As in C: both are texts that end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut c_void {
    /// The next one in the order of loading.
    const NEXT: *mut c_void = usize::MAX as *mut c_void;
    // SAFETY: the symbol's name ends with a zero byte.
    let next = unsafe { dlsym(NEXT, c"fopen64".as_ptr()) };
    if next.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the C library's function has this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, Open>(next) };
    // SAFETY: the caller gives a text.
    let named = unsafe { CStr::from_ptr(path) };
    let path = if named == c"/proc/modules" { c"/dev/null".as_ptr() } else { path };
    // SAFETY: as the caller's.
    unsafe { next(path, mode) }
}
