//! Preloaded by `cargo xtask test-cufile-host` where the kernel has no `/proc/modules`: libcufile up to 1.20 opens that file
//! again and again until it is there. With this it is there, and empty; who asks beforehand whether it is there hears the
//! same. For tests only.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

type Open = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void;
type Statx = unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint, *mut c_void) -> c_int;

/// The next one in the order of loading: the C library's own.
fn next(symbol: &CStr) -> *mut c_void {
    const NEXT: *mut c_void = usize::MAX as *mut c_void;
    // SAFETY: the symbol's name ends with a zero byte.
    unsafe { dlsym(NEXT, symbol.as_ptr()) }
}

/// The path, or what stands for it.
///
/// # Safety
/// It is null or a text that ends with a zero byte.
unsafe fn replaced(path: *const c_char) -> *const c_char {
    if path.is_null() {
        return path;
    }
    // SAFETY: the caller gives a text.
    let named = unsafe { CStr::from_ptr(path) };
    if named == c"/proc/modules" { c"/dev/null".as_ptr() } else { path }
}

/// The C library's own, with one name replaced.
///
/// # Safety
/// As in C: both are texts that end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut c_void {
    let next = next(c"fopen64");
    if next.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the C library's function has this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, Open>(next) };
    // SAFETY: as the caller's.
    let path = unsafe { replaced(path) };
    // SAFETY: as the caller's.
    unsafe { next(path, mode) }
}

/// The C library's own, with one name replaced.
///
/// # Safety
/// As in C: the path is a text that ends with a zero byte, and there is room for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    answer: *mut c_void,
) -> c_int {
    let next = next(c"statx");
    if next.is_null() {
        return -1;
    }
    // SAFETY: the C library's function has this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, Statx>(next) };
    // SAFETY: as the caller's.
    let path = unsafe { replaced(path) };
    // SAFETY: as the caller's.
    unsafe { next(dir, path, flags, mask, answer) }
}
