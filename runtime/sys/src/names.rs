//! The doors to the C library's name services, walled up.
//!
//! `getaddrinfo` and the functions for users and groups read `/etc/nsswitch.conf`
//! and load the libraries that it names, with `dlopen`: also in a static program,
//! and with the constructors of whoever put them there. No program of ours may
//! do that, least of all one whose root directory holds files of an image. Ours
//! ask `knarr-resolver` for addresses and read `/etc/passwd` themselves; but the
//! standard library and other crates refer to these functions, so they are
//! defined here: the linker takes them instead of the C library's, and what
//! those would bring along is not in the program at all (a test of `tests/e2e`
//! looks into each).
//!
//! **How it fails.** Who comes here is told that there is no such name.

use std::{
    ffi::{c_char, c_int, c_void},
    ptr,
};

// JUSTIFICATION: the names are what others call; there is no other seam.
// SAFETY (all): each takes the place of the C library's function of that name, with
// its signature, and keeps its contract for a name that is not known.

/// `getaddrinfo(3)`: addresses that are written in digits are parsed elsewhere.
///
/// # Safety
/// As the C library's; nothing is read or written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getaddrinfo(
    _node: *const c_char,
    _service: *const c_char,
    _hints: *const libc::addrinfo,
    _found: *mut *mut libc::addrinfo,
) -> c_int {
    libc::EAI_FAIL
}

/// `freeaddrinfo(3)`: there is never anything to free.
///
/// # Safety
/// As the C library's; nothing is read or written.
#[unsafe(no_mangle)]
unsafe extern "C" fn freeaddrinfo(_list: *mut libc::addrinfo) {}

/// A lookup that finds nothing is a success with a null result.
unsafe fn nothing(found: *mut *mut c_void) -> c_int {
    // SAFETY: callers pass where the result goes, as the C library's manual says.
    unsafe { found.write(ptr::null_mut()) };
    0
}

macro_rules! unknown {
    ($($name:ident($key:ty)),*) => { $(
        /// A lookup of the C library's, which finds nothing.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            _key: $key,
            _entry: *mut c_void,
            _buffer: *mut c_char,
            _length: usize,
            found: *mut *mut c_void,
        ) -> c_int {
            // SAFETY: passed on.
            unsafe { nothing(found) }
        }
    )* };
}

unknown!(
    getpwnam_r(*const c_char),
    getpwuid_r(libc::uid_t),
    getgrnam_r(*const c_char),
    getgrgid_r(libc::gid_t)
);

/// What a program calls once, so that the functions above are in it whatever the
/// linker thinks of libraries.
pub fn without_name_services() {
    let kept: [*const (); 6] = [
        getaddrinfo as *const (),
        freeaddrinfo as *const (),
        getpwnam_r as *const (),
        getpwuid_r as *const (),
        getgrnam_r as *const (),
        getgrgid_r as *const (),
    ];
    std::hint::black_box(kept);
}

#[cfg(test)]
mod tests {
    use std::net::ToSocketAddrs as _;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "that they find nothing is what is tested")]
    fn v02_no_program_asks_the_c_library_for_names() {
        super::without_name_services();
        assert!(("localhost", 1).to_socket_addrs().is_err());
        assert_eq!(("127.0.0.1", 1).to_socket_addrs().unwrap().count(), 1);
        let root = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(0));
        assert_eq!(root.unwrap(), None);
        assert_eq!(nix::unistd::Group::from_name("root").unwrap(), None);
    }
}
