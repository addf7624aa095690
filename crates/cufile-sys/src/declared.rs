//! What this crate declares, as data: `cargo xtask cufile-bindings` compares it with NVIDIA's own header.

use core::mem::{align_of, offset_of, size_of};

use crate::{
    BatchIo, BoolParam, Descr, DrvProps, FileError, HandleType, IoEvents, IoParams, IoVec, NvfsProps, OpCode,
    P2pFlags, SizeParam, Status, StreamFlags, StringParam, TargetType, control, feature, io_state,
};

/// A function: types are written as in this crate.
#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// The exported name.
    pub symbol: &'static str,
    /// In order.
    pub arguments: &'static [&'static str],
    /// `()` for none.
    pub result: &'static str,
}

/// A struct.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The header's name for it, or what bindgen calls a nameless one.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
    /// The header's name of each field, and its offset.
    pub fields: &'static [(&'static str, usize)],
}

/// Every function of [`crate::Calls`].
pub const SIGNATURES: &[Signature] = crate::calls::SIGNATURES;

/// The header's name for each type in [`SIGNATURES`] that is called otherwise here.
pub const NAMES: &[(&str, &str)] = &[
    ("BatchHandle", "CUfileBatchHandle_t"),
    ("BoolParam", "CUFileBoolConfigParameter_t"),
    ("Descr", "CUfileDescr_t"),
    ("DrvProps", "CUfileDrvProps_t"),
    ("FileError", "CUfileError_t"),
    ("Handle", "CUfileHandle_t"),
    ("IoEvents", "CUfileIOEvents_t"),
    ("IoParams", "CUfileIOParams_t"),
    ("IoVec", "CUfileIOVec_t"),
    ("P2pFlags", "CUfileP2PFlags_t"),
    ("SizeParam", "CUFileSizeTConfigParameter_t"),
    ("Stream", "CUstream"),
    ("StringParam", "CUFileStringConfigParameter_t"),
    ("TargetType", "CUfileDriverStatusFlags_t"),
    ("Timespec", "timespec"),
];

macro_rules! layouts {
    ($($type:ident = $name:literal { $($field:ident = $c:literal),* };)*) => {
        /// Every struct that crosses the border.
        pub const LAYOUTS: &[Layout] = &[$(Layout {
            name: $name,
            size: size_of::<$type>(),
            align: align_of::<$type>(),
            fields: &[$(($c, offset_of!($type, $field))),*],
        },)*];
    };
}

layouts! {
    FileError = "CUfileError" { err = "err", cu_err = "cu_err" };
    Descr = "CUfileDescr_t" { kind = "type_", handle = "handle", fs_ops = "fs_ops" };
    DrvProps = "CUfileDrvProps" {
        nvfs = "nvfs", fflags = "fflags", max_device_cache_size = "max_device_cache_size",
        per_buffer_cache_size = "per_buffer_cache_size",
        max_device_pinned_mem_size = "max_device_pinned_mem_size", max_batch_io_size = "max_batch_io_size",
        max_batch_io_timeout_msecs = "max_batch_io_timeout_msecs"
    };
    NvfsProps = "CUfileDrvProps__bindgen_ty_1" {
        major_version = "major_version", minor_version = "minor_version", poll_thresh_size = "poll_thresh_size",
        max_direct_io_size = "max_direct_io_size", dstatusflags = "dstatusflags", dcontrolflags = "dcontrolflags"
    };
    IoParams = "CUfileIOParams" { mode = "mode", batch = "u", fh = "fh", opcode = "opcode", cookie = "cookie" };
    BatchIo = "CUfileIOParams__bindgen_ty_1__bindgen_ty_1" {
        dev_ptr_base = "devPtr_base", file_offset = "file_offset", dev_ptr_offset = "devPtr_offset", size = "size"
    };
    IoEvents = "CUfileIOEvents" { cookie = "cookie", status = "status", ret = "ret" };
    IoVec = "CUfileIOVec" { base = "base", len = "len" };
}

/// A number of the header, by the type and the name that it has there.
pub type Constant = (&'static str, String, u32);

/// Every number.
pub fn constants() -> Vec<Constant> {
    let mut all: Vec<Constant> = Vec::new();
    let mut add = |kind, name: &str, value| all.push((kind, name.to_owned(), value));
    for status in Status::ALL {
        add("CUfileOpError", status.name(), status.0);
    }
    for (kind, name, value) in
        [SizeParam::DECLARED, BoolParam::DECLARED, StringParam::DECLARED].into_iter().flatten()
    {
        add(kind, name, *value);
    }
    for (name, target) in [
        ("LUSTRE", TargetType::LUSTRE),
        ("WEKAFS", TargetType::WEKAFS),
        ("NFS", TargetType::NFS),
        ("GPFS", TargetType::GPFS),
        ("NVME", TargetType::NVME),
        ("NVMEOF", TargetType::NVMEOF),
        ("SCSI", TargetType::SCSI),
        ("SCALEFLUX_CSD", TargetType::SCALEFLUX_CSD),
        ("NVMESH", TargetType::NVMESH),
        ("BEEGFS", TargetType::BEEGFS),
        ("NVME_P2P", TargetType::NVME_P2P),
        ("SCATEFS", TargetType::SCATEFS),
        ("VIRTIOFS", TargetType::VIRTIOFS),
        ("PANFS", TargetType::PANFS),
    ] {
        add("CUfileDriverStatusFlags", &format!("CU_FILE_{name}_SUPPORTED"), target.0);
    }
    // The header numbers the ways; the mask has a bit for each.
    for (name, flag) in [
        ("CUFILE_P2PDMA", P2pFlags::P2PDMA),
        ("CUFILE_NVFS", P2pFlags::NVFS),
        ("CUFILE_DMABUF", P2pFlags::DMABUF),
        ("CUFILE_C2C", P2pFlags::C2C),
    ] {
        add("CUfileP2PFlags", name, flag.0.trailing_zeros());
    }
    for (name, value) in [
        ("CU_FILE_USE_POLL_MODE", control::USE_POLL_MODE),
        ("CU_FILE_ALLOW_COMPAT_MODE", control::ALLOW_COMPAT_MODE),
    ] {
        add("CUfileDriverControlFlags", name, value);
    }
    for (name, value) in [
        ("CU_FILE_DYN_ROUTING_SUPPORTED", feature::DYN_ROUTING_SUPPORTED),
        ("CU_FILE_BATCH_IO_SUPPORTED", feature::BATCH_IO_SUPPORTED),
        ("CU_FILE_STREAMS_SUPPORTED", feature::STREAMS_SUPPORTED),
        ("CU_FILE_PARALLEL_IO_SUPPORTED", feature::PARALLEL_IO_SUPPORTED),
        ("CU_FILE_P2P_SUPPORTED", feature::P2P_SUPPORTED),
    ] {
        add("CUfileFeatureFlags", name, value);
    }
    add("CUfileFileHandleType", "CU_FILE_HANDLE_TYPE_OPAQUE_FD", HandleType::OPAQUE_FD.0);
    add("CUfileOpcode", "CUFILE_READ", OpCode::READ.0);
    add("CUfileOpcode", "CUFILE_WRITE", OpCode::WRITE.0);
    add("cufileBatchMode", "CUFILE_BATCH", 1);
    for (name, value) in [
        ("CUFILE_WAITING", io_state::WAITING),
        ("CUFILE_PENDING", io_state::PENDING),
        ("CUFILE_INVALID", io_state::INVALID),
        ("CUFILE_CANCELED", io_state::CANCELED),
        ("CUFILE_COMPLETE", io_state::COMPLETE),
        ("CUFILE_TIMEOUT", io_state::TIMEOUT),
        ("CUFILE_FAILED", io_state::FAILED),
    ] {
        add("CUFILEStatus_enum", name, value);
    }
    for (name, flag) in [
        ("CU_FILE_STREAM_FIXED_BUF_OFFSET", StreamFlags::FIXED_BUF_OFFSET),
        ("CU_FILE_STREAM_FIXED_FILE_OFFSET", StreamFlags::FIXED_FILE_OFFSET),
        ("CU_FILE_STREAM_FIXED_FILE_SIZE", StreamFlags::FIXED_FILE_SIZE),
        ("CU_FILE_STREAM_PAGE_ALIGNED_INPUTS", StreamFlags::PAGE_ALIGNED_INPUTS),
    ] {
        add("", name, flag.0);
    }
    all
}
