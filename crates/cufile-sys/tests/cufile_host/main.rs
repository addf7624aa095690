//! NVIDIA's own library against host memory, on a machine that needs no GPU.
//!
//! The library is named by `KV_CUFILE_LIB`; without it the tests are ignored, with `KVSTRATA_REQUIRE_CUFILE` that is a
//! failure. `cargo xtask test-cufile-host` fetches the library and sets both.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_cufile_sys::{
    BoolParam, Driver, FileHandle, Library, RegisteredBuffer, Search, SizeParam, Status, StringParam,
};
use libtest_mimic::{Arguments, Failed, Trial};

const CHILD: &str = "KVSTRATA_CUFILE_CHILD";
const LIMIT: Duration = Duration::from_secs(20);
const BLOCK: usize = 4096;

fn open(explicit: PathBuf) -> Result<Arc<Library>, String> {
    let search = Search { explicit: Some(explicit), ..Search::default() };
    // SAFETY: whoever runs this names NVIDIA's library.
    unsafe { Library::open(&search) }.map_err(|e| e.to_string())
}

/// Host memory through the page cache's own calls, with a log that is not left in the current folder.
fn configured(library: &Arc<Library>, log: &Path) -> Result<(), String> {
    let say = |e: kvstrata_cufile_sys::Failure| e.to_string();
    library.set_string(StringParam::LOGFILE_PATH, &log.display().to_string()).map_err(say)?;
    library.set_string(StringParam::LOGGING_LEVEL, "ERROR").map_err(say)?;
    library.set_bool(BoolParam::ALLOW_COMPAT_MODE, true).map_err(say)?;
    library.set_bool(BoolParam::ALLOW_SYSTEM_MEMORY, true).map_err(say)
}

/// Opens the driver in another process first: it may never come back.
fn preflight(log: &Path) -> Result<(), String> {
    let mut child = Command::new(std::env::current_exe().map_err(|e| e.to_string())?)
        .env(CHILD, log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("no child process: {e}"))?;
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let said = child.stderr.take().and_then(|e| std::io::read_to_string(e).ok());
                return Err(format!(
                    "the driver does not open ({status}): {}",
                    said.unwrap_or_default().trim()
                ));
            }
            Ok(None) if start.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the driver did not open within {} s", LIMIT.as_secs()));
            }
            Err(e) => return Err(e.to_string()),
        }
    }
}

fn child(log: PathBuf) -> ExitCode {
    let opened =
        std::env::var_os("KV_CUFILE_LIB").ok_or("KV_CUFILE_LIB is not set".into()).and_then(|name| {
            let library = open(name.into())?;
            configured(&library, &log)?;
            library.open_driver().map(drop).map_err(|e| e.to_string())
        });
    match opened {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// What the tests share: the library's driver is one per process.
struct Host {
    library: Arc<Library>,
    driver: Arc<Driver>,
    folder: tempfile::TempDir,
}

impl Host {
    fn open() -> Result<Self, String> {
        let Some(name) = std::env::var_os("KV_CUFILE_LIB") else {
            return Err("KV_CUFILE_LIB does not name a libcufile".into());
        };
        // Registering a file on a disk needs a record of udev; in memory it does not.
        let folder = tempfile::tempdir_in("/dev/shm").map_err(|e| format!("/dev/shm: {e}"))?;
        let log = folder.path().join("cufile.log");
        preflight(&log)?;
        let library = open(name.into())?;
        configured(&library, &log)?;
        let driver = library.open_driver().map_err(|e| e.to_string())?;
        Ok(Self { library, driver, folder })
    }

    fn file(&self, name: &str) -> Result<File, Failed> {
        let path = self.folder.path().join(name);
        Ok(OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?)
    }
}

/// Page-aligned memory with a pattern that is different in every block.
struct Memory(Vec<u64>);

impl Memory {
    fn new(len: usize, seed: u64) -> Self {
        // One page more, to begin at its border.
        let mut memory = Self(vec![0; (len + BLOCK) / 8]);
        for (i, word) in memory.bytes_mut(len).chunks_mut(8).enumerate() {
            let value = (i as u64 / 512 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64 ^ seed;
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
        memory
    }

    fn base(&self) -> NonNull<u8> {
        let start = NonNull::from(&self.0[0]).cast::<u8>();
        let pad = start.as_ptr().align_offset(BLOCK);
        // SAFETY: there is one page more than is used.
        unsafe { start.add(pad) }
    }

    fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        let base = self.base();
        // SAFETY: initialised, within the vector, borrowed as it is.
        unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), len) }
    }
}

fn equal(a: &[u8], b: &[u8]) -> Result<(), Failed> {
    match a.iter().zip(b).position(|(x, y)| x != y) {
        None if a.len() == b.len() => Ok(()),
        at => Err(format!("{} and {} bytes differ at {at:?}", a.len(), b.len()).into()),
    }
}

/// Through the library to a file and back, at every size and offset, byte for byte; and past it, by plain reads.
fn round_trip(host: &Host, registered: bool) -> Result<(), Failed> {
    const LEN: usize = (16 << 20) + BLOCK;
    let mut source = Memory::new(LEN, 1);
    let mut target = Memory::new(LEN, 2);
    let name = if registered { "registered" } else { "plain" };
    let plain = host.file(name)?;
    let handle = FileHandle::register(&host.driver, plain.try_clone()?)?;
    let pins = if registered {
        // SAFETY: the vectors outlive the pins.
        let source = unsafe { RegisteredBuffer::register(&host.driver, source.base(), LEN) }?;
        // SAFETY: as above.
        let target = unsafe { RegisteredBuffer::register(&host.driver, target.base(), LEN) }?;
        vec![source, target]
    } else {
        Vec::new()
    };
    for (len, memory_at, file_at) in [
        (4096, 0, 0),
        (64 << 10, 4096, 8192),
        (1 << 20, 0, 4096),
        (5 << 19, 1 << 20, 0),
        (16 << 20, 4096, 0),
        (LEN, 0, 4096),
        (1000, 3, 37),
        (1, 4095, 0),
    ] {
        plain.set_len(0)?;
        // SAFETY: the range lies in the vector, which nobody else uses.
        let wrote = unsafe { handle.write(source.base(), memory_at, len, file_at) }?;
        if wrote != len {
            return Err(format!("{wrote} of {len} bytes written").into());
        }
        let expected = source.bytes_mut(LEN)[memory_at..memory_at + len].to_vec();
        let mut seen = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&plain, &mut seen, file_at)?;
        equal(&expected, &seen)?;
        target.bytes_mut(LEN).fill(0xa5);
        // SAFETY: as above.
        let read = unsafe { handle.read(target.base(), memory_at, len, file_at) }?;
        if read != len {
            return Err(format!("{read} of {len} bytes read").into());
        }
        let all = target.bytes_mut(LEN);
        equal(&expected, &all[memory_at..memory_at + len])?;
        if all[..memory_at].iter().chain(&all[memory_at + len..]).any(|b| *b != 0xa5) {
            return Err("bytes around the target were written".into());
        }
    }
    drop(pins);
    Ok(())
}

fn past_the_end(host: &Host) -> Result<(), Failed> {
    let mut memory = Memory::new(2 * BLOCK, 3);
    let plain = host.file("short")?;
    let handle = FileHandle::register(&host.driver, plain.try_clone()?)?;
    plain.set_len(BLOCK as u64 + 100)?;
    memory.bytes_mut(2 * BLOCK).fill(0xa5);
    // SAFETY: the memory has two blocks, and nobody else uses it.
    let some = unsafe { handle.read(memory.base(), 0, 2 * BLOCK, 0) }?;
    // SAFETY: as above.
    let none = unsafe { handle.read(memory.base(), 0, BLOCK, 1 << 20) }?;
    if (some, none) != (BLOCK + 100, 0) {
        return Err(format!("{some} bytes up to the end and {none} behind it").into());
    }
    Ok(())
}

fn codes(host: &Host) -> Result<(), Failed> {
    let expect = |what: &str, got: Option<Status>, wanted: Status| {
        if got == Some(wanted) {
            Ok(())
        } else {
            Err(Failed::from(format!("{what}: {got:?}, not {wanted:?}")))
        }
    };
    let memory = Memory::new(BLOCK, 4);
    // SAFETY: the vector outlives the pin.
    let once = unsafe { RegisteredBuffer::register(&host.driver, memory.base(), BLOCK) }?;
    // SAFETY: as above.
    let twice = unsafe { RegisteredBuffer::register(&host.driver, memory.base(), BLOCK) };
    expect("memory twice", twice.err().and_then(|e| e.status()), Status::MEMORY_ALREADY_REGISTERED)?;
    drop(once);
    // SAFETY: as above; once more, now that it is free again.
    drop(unsafe { RegisteredBuffer::register(&host.driver, memory.base(), BLOCK) }?);
    let late = host.library.set_size(SizeParam::IO_BATCHSIZE, 64);
    expect("a setting when open", late.err().and_then(|e| e.status()), Status::DRIVER_ALREADY_OPEN)?;
    let read_only = File::open("/dev/null")?;
    let refused = FileHandle::register(&host.driver, read_only).map(drop);
    if refused.is_ok() {
        return Err("a device that is no file was registered".into());
    }
    Ok(())
}

fn closed_file(host: &Host) -> Result<(), Failed> {
    let memory = Memory::new(BLOCK, 5);
    let path = host.folder.path().join("read-only");
    std::fs::write(&path, [0; BLOCK])?;
    let handle = FileHandle::register(&host.driver, File::open(&path)?)?;
    // SAFETY: the memory has a block.
    let failure = unsafe { handle.write(memory.base(), 0, BLOCK, 0) }.map(|n| format!("{n} bytes written"));
    match failure {
        Err(e) if e.errno().is_some() || e.status().is_some() => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn settings(host: &Host) -> Result<(), Failed> {
    let (least, most) = host.library.size_range(SizeParam::MAX_DIRECT_IO_SIZE_KB)?;
    let size = host.library.size(SizeParam::MAX_DIRECT_IO_SIZE_KB)?;
    if !(least <= size && size <= most && host.library.bool(BoolParam::ALLOW_COMPAT_MODE)?) {
        return Err(format!("{least} <= {size} <= {most}").into());
    }
    let properties = host.driver.properties()?;
    if properties.max_batch_io_size == 0 {
        return Err(format!("{properties:?}").into());
    }
    if !host.library.calls().missing().is_empty() && host.library.version().minor >= 20 {
        return Err(format!("not exported: {:?}", host.library.calls().missing()).into());
    }
    Ok(())
}

fn counted(host: &Host) -> Result<(), Failed> {
    let before = host.driver.use_count()?;
    let second = host.library.open_driver()?;
    if host.driver.use_count()? != before + 1 {
        return Err("a second driver is not counted".into());
    }
    drop(second);
    if host.driver.use_count()? != before {
        return Err("the second driver was not given back".into());
    }
    Ok(())
}

fn stats(host: &Host) -> Result<(), Failed> {
    host.driver.start_stats()?;
    let gpus = host.driver.gpu_stats()?;
    host.driver.stop_stats()?;
    match gpus {
        Some(gpus) if gpus.iter().all(|g| g.nvfs == [0, 0] && g.p2p == [0, 0]) => Ok(()),
        other => Err(format!("nothing here goes past the host, yet: {other:?}").into()),
    }
}

fn many_handles(host: &Host) -> Result<(), Failed> {
    let open = || std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    let before = open()?;
    for i in 0..300 {
        drop(FileHandle::register(&host.driver, host.file(&(i % 7).to_string())?)?);
    }
    let after = open()?;
    if after != before {
        return Err(format!("{before} descriptors before, {after} after").into());
    }
    Ok(())
}

type Test = fn(&Host) -> Result<(), Failed>;

const TESTS: &[(&str, Test)] = &[
    ("round_trip_with_registered_memory", |h| round_trip(h, true)),
    ("round_trip_with_plain_memory", |h| round_trip(h, false)),
    ("reads_past_the_end_are_short", past_the_end),
    ("refusals_have_the_codes_that_are_declared", codes),
    ("a_write_to_a_file_opened_for_reading_fails", closed_file),
    ("settings_and_properties_are_read", settings),
    ("drivers_are_counted", counted),
    ("no_transfer_is_counted_as_direct", stats),
    ("handles_leave_no_descriptor_behind", many_handles),
];

fn main() -> ExitCode {
    if let Some(log) = std::env::var_os(CHILD) {
        return child(log.into());
    }
    let mut args = Arguments::from_args();
    // The driver, its settings and its statistics are the process's.
    args.test_threads = Some(1);
    let required = std::env::var_os("KVSTRATA_REQUIRE_CUFILE").is_some();
    let host = if args.list { Err("only listed".into()) } else { Host::open() };
    let host = host.map(|host| &*Box::leak(Box::new(host)));
    let trials = TESTS.iter().map(|(name, test)| match &host {
        Ok(host) => Trial::test(*name, || test(host)),
        Err(why) if required && !args.list => {
            let why = why.clone();
            Trial::test(*name, move || Err(why.into()))
        }
        Err(why) => Trial::test(format!("{name} (not here: {why})"), || Ok(())).with_ignored_flag(true),
    });
    let code = libtest_mimic::run(&args, trials.collect()).exit_code();
    // The folder is the process's last.
    if let Ok(host) = host {
        let _ = std::fs::remove_dir_all(host.folder.path());
    }
    code
}
