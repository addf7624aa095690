//! See `kvstrata_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    kvstrata_fuzz::zmtp(data);
});
