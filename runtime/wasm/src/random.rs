//! Random bytes where there is no `/dev`.
//!
//! The crate `getrandom` looks for the C library's function of that name with
//! `dlsym`, because old libraries lack it, and reads `/dev/urandom` where it
//! finds none. In a static program `dlsym` never finds anything, and the jail
//! has no `/dev`. So this program has a `dlsym` of its own, which knows the one
//! name that matters. (The crate's other way is a compiler flag for every crate
//! of the workspace.)

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

// JUSTIFICATION: the name is what the crate calls; there is no other seam.
// SAFETY: takes the place of the C library's function, which in a static program
// answers null to every name; so does this one, but for `getrandom`.
#[unsafe(no_mangle)]
extern "C" fn dlsym(_library: *mut c_void, name: *const c_char) -> *mut c_void {
    if name.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: callers of dlsym(3) pass a string that ends in NUL.
    let name = unsafe { CStr::from_ptr(name) };
    if name == c"getrandom" { libc::getrandom as *mut c_void } else { ptr::null_mut() }
}
