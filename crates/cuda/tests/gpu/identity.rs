//! Which device is which.

use std::path::Path;
use std::process::Command;

use kvstrata_core::ErrorKind;
use libtest_mimic::Failed;

use crate::Gpu;
use crate::child;

pub(super) fn machine(gpu: &Gpu) -> Result<(), Failed> {
    let devices = gpu.cuda.devices()?;
    let mut uuids: Vec<_> = devices.iter().map(|d| d.uuid()).collect();
    uuids.sort_unstable();
    uuids.dedup();
    if uuids.len() != devices.len() {
        return Err("two devices have one UUID".into());
    }
    for device in &devices {
        let affinity = device.affinity();
        if affinity.uuid != Some(device.uuid().0) || affinity.ordinal != Some(device.ordinal()) {
            return Err(format!("{affinity:?}").into());
        }
        if gpu.cuda.device_by_uuid(device.uuid())?.ordinal() != device.ordinal() {
            return Err("the UUID leads to another device".into());
        }
        // Not every container shows the bus.
        let bus = Path::new("/sys/bus/pci/devices");
        if bus.exists() && !bus.join(device.pci().as_str()).exists() {
            eprintln!("note: {} is not listed in {}", device.pci(), bus.display());
        }
    }
    if let Ok(listed) = Command::new("nvidia-smi").arg("-L").output()
        && listed.status.success()
    {
        let text = String::from_utf8_lossy(&listed.stdout).to_lowercase();
        let uuid = gpu.device.uuid().to_string().to_lowercase();
        if !text.contains(&uuid) {
            return Err(format!("nvidia-smi does not list {uuid}:\n{text}").into());
        }
    }
    let absent = gpu.cuda.device_by_uuid("GPU-00000000-0000-0000-0000-000000000001".parse()?);
    match absent {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

pub(super) fn visible(gpu: &Gpu) -> Result<(), Failed> {
    let devices = gpu.cuda.devices()?;
    for device in &devices {
        let said = child::identity(&device.uuid().to_string())?;
        if said != format!("1 0 {} {}", device.uuid(), device.pci()) {
            return Err(format!("alone, device {} is: {said}", device.ordinal()).into());
        }
    }
    let turned: Vec<String> = devices.iter().rev().map(|d| d.uuid().to_string()).collect();
    let said = child::identity(&turned.join(","))?;
    let last = devices.last().ok_or("no devices")?;
    if said != format!("{} 0 {} {}", devices.len(), last.uuid(), last.pci()) {
        return Err(format!("turned round, the first device is: {said}").into());
    }
    Ok(())
}

pub(super) fn hidden(_: &Gpu) -> Result<(), Failed> {
    for value in ["", "-1"] {
        let said = child::identity(value)?;
        if !said.starts_with("unavailable") {
            return Err(format!("CUDA_VISIBLE_DEVICES='{value}': {said}").into());
        }
    }
    Ok(())
}
