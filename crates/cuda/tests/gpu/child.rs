//! What this program does as another process: it is told by its first argument, and speaks through its standard streams.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use kvstrata_cuda::Cuda;
use libtest_mimic::Failed;

const ROLE: &str = "KVSTRATA_GPU_CHILD";
/// Opening the driver takes seconds on some machines.
const LIMIT: Duration = Duration::from_secs(60);

/// Plays the part that this process was started for, if it was.
pub(super) fn main() -> Option<ExitCode> {
    let role = std::env::var(ROLE).ok()?;
    let done = match role.as_str() {
        "identity" => identify(),
        "import" => crate::ipc::import(),
        "export" => crate::ipc::export(),
        "host" => crate::ipc::host_child(),
        other => Err(format!("there is no part {other}").into()),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&format!("failed {}", e.message().unwrap_or_default().replace('\n', " ")));
            ExitCode::FAILURE
        }
    })
}

fn identify() -> Result<(), Failed> {
    match Cuda::open() {
        Ok(cuda) => {
            let device = cuda.device(0)?;
            say(&format!("{} {} {} {}", cuda.device_count(), device.ordinal(), device.uuid(), device.pci()));
        }
        Err(e) => say(&format!("{} {e}", e.kind().name())),
    }
    Ok(())
}

/// What a process sees of which `CUDA_VISIBLE_DEVICES` is this.
pub(super) fn identity(visible: &str) -> Result<String, Failed> {
    let mut other = Other::start("identity", &[("CUDA_VISIBLE_DEVICES", visible)])?;
    other.hear()
}

/// One line to the parent.
pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// One line from the parent.
pub(super) fn listen() -> Result<String, Failed> {
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        return Err("the parent is gone".into());
    }
    Ok(line.trim_end().to_owned())
}

/// Another process of this program. Killed when dropped.
pub(super) struct Other {
    child: Child,
    to: ChildStdin,
    from: mpsc::Receiver<String>,
}

impl Other {
    pub(super) fn start(role: &str, env: &[(&str, &str)]) -> Result<Self, Failed> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(ROLE, role)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("no stdin")?;
        let out: ChildStdout = child.stdout.take().ok_or("no stdout")?;
        let (lines, from) = mpsc::channel();
        // Ends with the child.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        Ok(Self { child, to, from })
    }

    pub(super) fn hear(&mut self) -> Result<String, Failed> {
        let line =
            self.from.recv_timeout(LIMIT).map_err(|e| format!("the other process says nothing: {e}"))?;
        match line.strip_prefix("failed ") {
            Some(why) => Err(format!("in the other process: {why}").into()),
            None => Ok(line),
        }
    }

    pub(super) fn tell(&mut self, line: &str) -> Result<(), Failed> {
        writeln!(self.to, "{line}")?;
        Ok(self.to.flush()?)
    }

    pub(super) fn kill(mut self) -> Result<(), Failed> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
