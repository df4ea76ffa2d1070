//! Wasm components that misbehave, in text form: `wat` makes bytes of them.
//!
//! Written by hand, because no toolchain makes them: a guest's library would not trap in the
//! middle of an answer, and would not leave what it holds lying about.

/// A service that handles its requests with `handle`, the body of a core function: local 0 is
/// the request, local 1 the place for the answer. Beside WebAssembly's own it may call
///
/// | function | what it does |
/// |---|---|
/// | `$begin (param $out) (result $stream)` | answers 200; the body is to be written |
/// | `$say (param $stream $address $length)` | writes to it, waiting for room |
/// | `$end` | the body is complete |
/// | `$fields (result $handle)` | makes a resource of the host's |
/// | `$fill (param $handle)` | adds 8 KiB to it |
/// | `$random (param $length i64) (result $list)` | asks for bytes |
///
/// Its memory is `$memory`, 17 pages, with the text `0123456789abcdef` from 1024 to 9216; the
/// table `$table` can grow, local 2 is free.
pub fn http_service(handle: &str) -> String {
    // `variant error-code` of wasi:http 0.2, by names and payloads.
    let codes = [
        ("DNS-timeout", ""),
        ("DNS-error", "$dns"),
        ("destination-not-found", ""),
        ("destination-unavailable", ""),
        ("destination-IP-prohibited", ""),
        ("destination-IP-unroutable", ""),
        ("connection-refused", ""),
        ("connection-terminated", ""),
        ("connection-timeout", ""),
        ("connection-read-timeout", ""),
        ("connection-write-timeout", ""),
        ("connection-limit-reached", ""),
        ("TLS-protocol-error", ""),
        ("TLS-certificate-error", ""),
        ("TLS-alert-received", "$tls"),
        ("HTTP-request-denied", ""),
        ("HTTP-request-length-required", ""),
        ("HTTP-request-body-size", "(option u64)"),
        ("HTTP-request-method-invalid", ""),
        ("HTTP-request-URI-invalid", ""),
        ("HTTP-request-URI-too-long", ""),
        ("HTTP-request-header-section-size", "(option u32)"),
        ("HTTP-request-header-size", "(option $size)"),
        ("HTTP-request-trailer-section-size", "(option u32)"),
        ("HTTP-request-trailer-size", "$size"),
        ("HTTP-response-incomplete", ""),
        ("HTTP-response-header-section-size", "(option u32)"),
        ("HTTP-response-header-size", "$size"),
        ("HTTP-response-body-size", "(option u64)"),
        ("HTTP-response-trailer-section-size", "(option u32)"),
        ("HTTP-response-trailer-size", "$size"),
        ("HTTP-response-transfer-coding", "(option string)"),
        ("HTTP-response-content-coding", "(option string)"),
        ("HTTP-response-timeout", ""),
        ("HTTP-upgrade-failed", ""),
        ("HTTP-protocol-error", ""),
        ("loop-detected", ""),
        ("configuration-error", ""),
        ("internal-error", "(option string)"),
    ];
    let codes: String =
        codes.iter().map(|(name, payload)| format!("(case \"{name}\" {payload})")).collect();
    let text = "0123456789abcdef".repeat(512);
    format!(
        r#"(component $C
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer $C $error (type $error-outside))
    (export "error" (type $error (eq $error-outside)))
    (type $failed (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failed)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $stream)) (param "contents" (list u8))
        (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:random/random@0.2.0" (instance $randoms
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (import "wasi:http/types@0.2.0" (instance $types
    (alias outer $C $stream (type $stream-outside))
    (export "output-stream" (type $stream (eq $stream-outside)))
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "outgoing-body" (type $body (sub resource)))
    (export "response-outparam" (type $out (sub resource)))
    (type $dns-record (record (field "rcode" (option string)) (field "info-code" (option u16))))
    (export "DNS-error-payload" (type $dns (eq $dns-record)))
    (type $tls-record
      (record (field "alert-id" (option u8)) (field "alert-message" (option string))))
    (export "TLS-alert-received-payload" (type $tls (eq $tls-record)))
    (type $size-record
      (record (field "field-name" (option string)) (field "field-size" (option u32))))
    (export "field-size-payload" (type $size (eq $size-record)))
    (type $codes (variant {codes}))
    (export "error-code" (type $code (eq $codes)))
    (export "[constructor]fields" (func (result (own $fields))))
    (type $problem (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
    (export "header-error" (type $header-error (eq $problem)))
    (export "[method]fields.append"
      (func (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8))
        (result (result (error $header-error)))))
    (export "[constructor]outgoing-response"
      (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.body"
      (func (param "self" (borrow $response)) (result (result (own $body)))))
    (export "[method]outgoing-body.write"
      (func (param "self" (borrow $body)) (result (result (own $stream)))))
    (export "[static]outgoing-body.finish"
      (func (param "this" (own $body)) (param "trailers" (option (own $fields)))
        (result (result (error $code)))))
    (export "[static]response-outparam.set"
      (func (param "param" (own $out)) (param "response" (result (own $response) (error $code)))))
  ))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (core module $storage
    (memory (export "memory") 17)
    (global $free (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
      (global.set $free (i32.add (local.get $at) (local.get 3)))
      (block $fits
        (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
        (br_if $fits (i32.ne (i32.const -1)
          (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536))))))
        unreachable)
      (local.get $at)))
  (core instance $storage (instantiate $storage))
  (alias core export $storage "memory" (core memory $memory))
  (alias core export $storage "realloc" (core func $realloc))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $append (canon lower (func $types "[method]fields.append")
    (memory $memory) string-encoding=utf8))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $response-body
    (canon lower (func $types "[method]outgoing-response.body") (memory $memory)))
  (core func $body-write
    (canon lower (func $types "[method]outgoing-body.write") (memory $memory)))
  (core func $finish (canon lower (func $types "[static]outgoing-body.finish")
    (memory $memory) (realloc $realloc) string-encoding=utf8))
  (core func $set (canon lower (func $types "[static]response-outparam.set")
    (memory $memory) (realloc $realloc) string-encoding=utf8))
  (core func $write
    (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
      (memory $memory) (realloc $realloc)))
  (core func $random (canon lower (func $randoms "get-random-bytes")
    (memory $memory) (realloc $realloc)))
  (core func $drop-stream (canon resource.drop $stream))
  (core module $main
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "host" "response" (func $response (param i32) (result i32)))
    (import "host" "response-body" (func $response-body (param i32 i32)))
    (import "host" "body-write" (func $body-write (param i32 i32)))
    (import "host" "finish" (func $finish (param i32 i32 i32 i32)))
    (import "host" "set" (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "random" (func $random-into (param i64 i32)))
    (import "host" "drop-stream" (func $drop-stream (param i32)))
    (import "storage" "memory" (memory $memory 17))
    (table $table 1 funcref)
    (global $body (mut i32) (i32.const 0))
    (global $stream (mut i32) (i32.const 0))
    (data (i32.const 1024) "{text}")
    (func $begin (param $out i32) (result i32)
      (local $answer i32)
      (local.set $answer (call $response (call $fields)))
      (call $response-body (local.get $answer) (i32.const 0))
      (global.set $body (i32.load (i32.const 4)))
      (call $body-write (global.get $body) (i32.const 0))
      (global.set $stream (i32.load (i32.const 4)))
      (call $set (local.get $out) (i32.const 0) (local.get $answer) (i32.const 0) (i64.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
      (global.get $stream))
    (func $say (param $stream i32) (param $address i32) (param $length i32)
      (call $write (local.get $stream) (local.get $address) (local.get $length) (i32.const 0)))
    (func $end
      (call $drop-stream (global.get $stream))
      (call $finish (global.get $body) (i32.const 0) (i32.const 0) (i32.const 0)))
    (func $fill (param $fields i32)
      ;; The name is "a", of the text.
      (call $append (local.get $fields) (i32.const 1034) (i32.const 1)
        (i32.const 1024) (i32.const 8192) (i32.const 0)))
    (func $random (param $length i64) (result i32)
      (call $random-into (local.get $length) (i32.const 0))
      (i32.load (i32.const 0)))
    (func (export "handle") (param i32 i32) (local i32)
      {handle}))
  (core instance $main (instantiate $main
    (with "storage" (instance $storage))
    (with "host" (instance
      (export "fields" (func $fields))
      (export "append" (func $append))
      (export "response" (func $response))
      (export "response-body" (func $response-body))
      (export "body-write" (func $body-write))
      (export "finish" (func $finish))
      (export "set" (func $set))
      (export "write" (func $write))
      (export "random" (func $random))
      (export "drop-stream" (func $drop-stream))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
    )
}
