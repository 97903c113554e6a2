//! The agent's kernel programs.
//!
//! A connection *out* of an enrolled network namespace meets three of them.
//! [`outbound`] rewrites the destination of connect(2) to the agent's listener on
//! the namespace's loopback and lets the socket remember where it was meant to
//! go. [`publish`] makes that known under the client's address and port, the one
//! thing the agent sees too, before the handshake's last packet leaves, hence
//! before the agent can accept. [`peername`] and [`sockname`] keep up
//! appearances.
//!
//! A connection *in* meets [`inbound`], which hands it to the agent's listener
//! without touching an address.
//!
//! None of them allows what it cannot redirect: with the agent gone there is no
//! listener, and connections are refused.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "an atomic addition")]

mod inbound;
mod maps;
mod outbound;
mod peername;
mod publish;
mod sockname;
mod words;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper that is used here is reserved to GPL programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
