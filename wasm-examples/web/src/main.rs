//! The Wasm half of the hybrid example: an HTTP service without a server.
//!
//! The host listens on the container's ports and makes an instance a request.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a greeting and the number of visits, kept in `/data/visits` |
//! | `/native` | what the native service answers, fetched by its name: `BACKEND`, `native:8000` unless said |
//! | `/env` | the environment, one variable a line |
//! | `/echo` | the request's body |
//! | `/trap` | none: the instance ends abnormally |

use std::{env, fs, io};

use wstd::http::{Body, Client, Error, Request, Response, StatusCode};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path().to_owned();
    println!("web: {} {path}", request.method());
    Ok(match path.as_str() {
        "/" => match visit() {
            Ok(count) => say(StatusCode::OK, format!("hello from a Wasm program, visit {count}\n")),
            Err(error) => {
                say(StatusCode::OK, format!("hello from a Wasm program (no /data: {error})\n"))
            }
        },
        "/native" => match native().await {
            Ok(answer) => say(StatusCode::OK, format!("the native service says: {answer}")),
            Err(error) => say(
                StatusCode::BAD_GATEWAY,
                format!("the native service does not answer: {error:#}\n"),
            ),
        },
        "/env" => {
            say(StatusCode::OK, env::vars().map(|(name, value)| format!("{name}={value}\n")).collect())
        }
        "/echo" => Response::new(request.into_body()),
        "/trap" => panic!("asked to"),
        _ => say(StatusCode::NOT_FOUND, "no such page\n".to_owned()),
    })
}

fn say(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}

/// Counts a visit in the file that both services share.
fn visit() -> io::Result<u64> {
    let path = "/data/visits";
    let before = fs::read_to_string(path).unwrap_or_default();
    let count = before.trim().parse::<u64>().unwrap_or(0) + 1;
    fs::write(path, count.to_string())?;
    Ok(count)
}

async fn native() -> Result<String, Error> {
    let backend = env::var("BACKEND").unwrap_or_else(|_| "native:8000".to_owned());
    let request = Request::get(format!("http://{backend}/")).body(Body::empty())?;
    let mut response = Client::new().send(request).await?;
    Ok(response.body_mut().str_contents().await?.to_owned())
}
