//! Memory, copies, streams and identity on a real GPU. Without one every test is ignored, with the reason; with
//! `KVSTRATA_REQUIRE_GPU` set that is a failure.

mod bytes;
mod child;
mod copies;
mod identity;
mod ipc;
mod leaks;
mod regions;

use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_cuda::{Cuda, Device};
use kvstrata_testkit::gated::{self, Test};

/// What the tests share.
struct Gpu {
    cuda: Arc<Cuda>,
    device: Arc<Device>,
}

fn open() -> Result<Gpu, String> {
    let cuda = Cuda::open().map_err(|e| e.message().to_owned())?;
    let device = cuda.device(0).map_err(|e| e.to_string())?;
    eprintln!(
        "{} {} at {}, NUMA node {:?}, {} GiB, CUDA {}, copies in batches: {}",
        device.name(),
        device.uuid(),
        device.pci(),
        device.numa_node(),
        device.memory() >> 30,
        cuda.driver_version(),
        cuda.copies_in_batches()
    );
    Ok(Gpu { cuda, device })
}

const TESTS: &[Test<Gpu>] = &[
    ("copies::pinned_round_trips_at_every_size_and_offset", copies::pinned),
    ("copies::pageable_round_trips", copies::pageable),
    ("copies::a_batch_is_the_same_as_a_loop", copies::batches),
    ("copies::streams_are_ordered_by_events_without_the_host", copies::ordered),
    ("copies::a_callback_comes_once_after_the_work_and_may_panic", copies::callbacks),
    ("copies::a_foreign_stream_is_used_and_not_destroyed", copies::foreign),
    ("regions::device_memory_is_zero_aligned_and_limited", regions::device),
    ("regions::bad_sizes_are_refused_by_name", regions::refused),
    ("regions::our_own_regions_are_pinned_and_go_on_after_it", regions::registered),
    ("regions::an_allocators_regions_are_pinned_as_they_come_and_go", regions::watched),
    ("regions::an_allocator_over_device_memory_hands_out_addresses", regions::slab),
    ("regions::any_thread_and_any_context_will_do", regions::contexts),
    ("identity::the_device_says_what_the_machine_says", identity::machine),
    ("identity::visible_devices_change_the_ordinal_and_not_the_uuid", identity::visible),
    ("identity::no_visible_device_is_unavailable", identity::hidden),
    ("ipc::memory_and_events_are_shared_with_another_process", ipc::shared),
    ("ipc::an_exporter_that_dies_takes_nobody_along", ipc::killed),
    ("ipc::a_handle_that_is_none_is_refused", ipc::refused),
    ("ipc::shared_host_memory_is_pinned_by_both_processes", ipc::host),
    ("leaks::ten_thousand_cycles_leave_nothing", leaks::cycles),
];

fn main() -> ExitCode {
    if let Some(code) = child::main() {
        return code;
    }
    gated::run(open, std::env::var_os("KVSTRATA_REQUIRE_GPU").is_some(), TESTS)
}
