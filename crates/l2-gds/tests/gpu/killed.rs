//! A process that is killed in the middle of a store.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use kvstrata_l2::Answer;
use kvstrata_l2_gds::GdsWay;
use libtest_mimic::Failed;

use crate::rig::{Gpu, folder};

const LEN: usize = 8 << 20;
const KEYS: u64 = 64;
const DIR: &str = "KVSTRATA_GDS_KILLED_DIR";
const WAY: &str = "KVSTRATA_GDS_KILLED_WAY";

fn name(way: GdsWay) -> &'static str {
    match way {
        GdsWay::Direct => "direct",
        GdsWay::Compat => "compat",
        _ => "bounce",
    }
}

/// The process that is killed: it stores until it is.
pub(crate) fn child() -> Option<ExitCode> {
    let dir = PathBuf::from(std::env::var_os(DIR)?);
    let way = match std::env::var(WAY).as_deref() {
        Ok("direct") => GdsWay::Direct,
        Ok("compat") => GdsWay::Compat,
        _ => GdsWay::Bounce,
    };
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("{e}");
            return Some(ExitCode::FAILURE);
        }
    };
    let stored = gpu.store(&dir, way, |_| ()).map_err(Failed::from).and_then(|rig| {
        println!("ready");
        (0..KEYS).try_for_each(|n| rig.write(n, LEN))
    });
    Some(if stored.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn no_torn_object(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    let mut whole = 0;
    for after in [5, 20, 60, 120] {
        let dir = folder();
        let mut child = Command::new(std::env::current_exe()?)
            .env(DIR, dir.path())
            .env(WAY, name(way))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        let out = child.stdout.as_mut().ok_or("no output")?;
        out.read_exact(&mut ready)?;
        std::thread::sleep(Duration::from_millis(after));
        child.kill()?;
        child.wait()?;
        let rig = gpu.store(dir.path(), way, |_| ())?;
        for n in 0..KEYS {
            match rig.get(vec![(n, gpu.poisoned(LEN)?)]).remove(0) {
                Answer::Miss(..) => {}
                answer => {
                    rig.compare(n, LEN, answer)?;
                    whole += 1;
                }
            }
        }
        // It is a store like any other.
        rig.put(vec![(KEYS, gpu.chunk(KEYS, LEN)?.seal(LEN))]).remove(0)?;
        rig.check(KEYS, LEN)?;
        rig.close()?;
    }
    eprintln!("{whole} objects survived, each whole");
    Ok(())
}
