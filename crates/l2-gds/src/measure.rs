//! A short run of both ways, where there is a choice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_io::{Disk, Open, OsDisk};
use kvstrata_l2::Timer;
use kvstrata_mem::{Allocate, Slab, UNIT};

use crate::bounce::Bounce;
use crate::cufile::{Cufile, failed, within};
use crate::device::Gpus;
use crate::order::Order;
use crate::transfer::{By, Span, read, write};
use crate::way::{Measured, Rates};

const CHUNK: usize = 8 << 20;
const CHUNKS: usize = 4;
const ROUNDS: usize = 3;

/// Everything that both ways need.
pub(crate) struct Bench<'a> {
    pub(crate) disk: &'a OsDisk,
    pub(crate) timer: &'a dyn Timer,
    pub(crate) gpus: &'a Arc<dyn Gpus>,
    pub(crate) bounce: &'a Bounce,
    pub(crate) cufile: &'a Cufile,
    pub(crate) ordinal: u32,
}

impl Bench<'_> {
    /// Moves some megabytes both ways, in turn, through a file that is made and removed at `path`; the best of a few rounds.
    pub(crate) fn run(&self, path: &Path) -> Result<Measured> {
        let new = Open { write: true, create_new: true, direct: true, ..Open::default() };
        let file = self.disk.open(path, new).map(Arc::new).map_err(|e| Error::io("measure ways", e));
        let measured = file.and_then(|file| {
            let slab = Slab::new(vec![self.gpus.memory(self.ordinal, 2 * CHUNK)?])?;
            let pool = slab.pool("measure", 2 * CHUNK as u64);
            let from = pool.reserve(CHUNK, UNIT)?.seal(CHUNK);
            let to = pool.reserve(CHUNK, UNIT)?;
            let handle = self.cufile.handle(&file, true, false)?;
            let spans: Vec<Span> = (0..CHUNKS)
                .map(|i| Span { file: Arc::clone(&file), offset: (i * CHUNK) as u64, bytes: CHUNK })
                .collect();
            let until = self.timer.now() + Duration::from_secs(60);
            let io = |e| Error::io("measure ways", e);
            let mut best = [Duration::MAX; 4];
            for _ in 0..ROUNDS {
                let out = self.time(|| {
                    spans.iter().try_for_each(|span| {
                        let gather = self.bounce.gather(&from, self.ordinal, &Order::default(), until)?;
                        let (pieces, _) = gather.finish(|_, _| ())?;
                        write(self.disk, By::Engine, span, &pieces).map_err(io)
                    })
                })?;
                let back = self.time(|| {
                    spans.iter().try_for_each(|span| {
                        let pieces = self.bounce.room(CHUNK, until)?;
                        let mut scatter = self.bounce.scatter(&to, self.ordinal, Order::default())?;
                        let mut put = Ok(());
                        let got = read(self.disk, span, pieces, |piece, at| {
                            let done = scatter.put(piece, at, |_| ());
                            put = std::mem::replace(&mut put, Ok(())).and(done);
                        });
                        let got = got.map_err(|(e, _)| io(e))?;
                        put.and_then(|()| scatter.finish())?;
                        whole(got)
                    })
                })?;
                let cufile = |writing: bool| {
                    self.time(|| {
                        within(&**self.gpus, self.ordinal, || {
                            spans.iter().try_for_each(|span| {
                                let buf = if writing { from.extent() } else { to.extent() };
                                let base = to.region().base();
                                let moved = if writing {
                                    // SAFETY: within the GPU's memory, held by `from`; the thread has its context.
                                    unsafe { handle.write(base, buf.offset, CHUNK, span.offset) }
                                } else {
                                    // SAFETY: as above, held by `to`, ours alone.
                                    unsafe { handle.read(base, buf.offset, CHUNK, span.offset) }
                                };
                                whole(moved.map_err(|f| failed("measure ways", f))?)
                            })
                        })
                    })
                };
                let (direct_out, direct_back) = (cufile(true)?, cufile(false)?);
                for (best, took) in best.iter_mut().zip([out, back, direct_out, direct_back]) {
                    *best = took.min(*best);
                }
            }
            let rate = |took: Duration| (CHUNK * CHUNKS) as f64 / took.as_secs_f64().max(1e-9);
            Ok(Measured {
                bounce: Rates { write: rate(best[0]), read: rate(best[1]) },
                direct: Rates { write: rate(best[2]), read: rate(best[3]) },
            })
        });
        // Also what a refused open may have left.
        let _ = self.disk.unlink(path);
        measured
    }

    fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let begin = self.timer.now();
        work()?;
        Ok(self.timer.now().since(begin))
    }
}

fn whole(moved: usize) -> Result<()> {
    if moved == CHUNK {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, "measure ways", format!("{moved} of {CHUNK} bytes were moved")))
}
