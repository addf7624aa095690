//! A file descriptor over a unix socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Sends `bytes` in one message, and the descriptor `fd` with it: the receiver gets one of its own for the same file.
///
/// # Errors
/// Whatever the system refuses; `WriteZero` if only a part of the message was taken.
pub fn send_with_fd(to: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // Words, so that the control header is aligned; far more than one descriptor needs.
    let mut control = [0u64; 8];
    // SAFETY: all zeros are a message without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: computes a length, reads no memory.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) } as _;
    // SAFETY: the control buffer is in place, and longer than one header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the pointer is into `control`, aligned, and nobody else has it.
    let head = unsafe { &mut *header };
    head.cmsg_level = libc::SOL_SOCKET;
    head.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: computes a length, reads no memory.
    head.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<libc::c_int>() as u32) } as _;
    // SAFETY: computes an address inside `control`.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the space for one descriptor is there, at any alignment.
    unsafe { data.cast::<libc::c_int>().write_unaligned(fd.as_raw_fd()) };
    // SAFETY: the message and all it points to outlive the call.
    let sent = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(n) => {
            Err(io::Error::new(io::ErrorKind::WriteZero, format!("{n} of {} bytes were sent", bytes.len())))
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_message_arrives_and_a_closed_peer_is_an_error() {
        let (a, mut b) = UnixStream::pair().unwrap();
        send_with_fd(&a, b"forty bytes or so", a.as_fd()).unwrap();
        let mut got = [0; 17];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"forty bytes or so");
        drop(b);
        assert_eq!(send_with_fd(&a, b"x", a.as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
