//! Applications that nobody wrote for a mesh, through both placements: what Debian has,
//! with its own clients, as they come.
//!
//! A program that is not installed (`make test-deps`) is skipped, and that is said.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Placement, PodSpec, ProcessHandle, ServiceSpec};
use mesh::programs::{self, NOBODY, are_there, serve};
use mesh::{Checks, Mesh};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

// The server's ports; the service has the same ones, and two more.
const NGINX: u16 = 8080;
const NGINX_H2C: u16 = 8081;
const PYTHON: u16 = 8000;
const POSTGRES: u16 = 5432;
const MARIADB: u16 = 3306;
const SMTP: u16 = 25;
/// Leads to MariaDB, and nobody knows that it speaks first.
const MARIADB_UNKNOWN: u16 = 13306;
/// The same for SMTP.
const SMTP_UNKNOWN: u16 = 2525;
/// Leads to PostgreSQL, and nobody knows what is spoken.
const POSTGRES_UNKNOWN: u16 = 15432;

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let shop = ServiceSpec::new("shop")
        .port_as(NGINX, NGINX, "http")
        .port(NGINX_H2C, NGINX_H2C)
        .port(PYTHON, PYTHON)
        .port(POSTGRES, POSTGRES)
        .port(POSTGRES_UNKNOWN, POSTGRES)
        .port(MARIADB, MARIADB)
        .port(MARIADB_UNKNOWN, MARIADB)
        .port(SMTP, SMTP)
        .port(SMTP_UNKNOWN, SMTP)
        .pods(["server"]);
    let pods = [
        PodSpec::new("client"),
        PodSpec::new("server").node(2).strict(),
    ];
    let Some(mesh) = Mesh::start(placement, pods, [shop]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let apps = Apps {
            mesh: &mesh,
            addresses: [shop.v4.into(), shop.v6.into()],
            dir: dir_for_all(),
        };
        let mut checks = Checks::default();
        if are_there("curl and nginx", &["curl", "nginx"]) {
            checks.run("curl and nginx", apps.nginx()).await;
        }
        if are_there("h2load, wrk and nginx", &["h2load", "wrk", "nginx"]) {
            let generators = apps.generators();
            checks
                .run_within(PATIENCE, "h2load, wrk and nginx", generators)
                .await;
        }
        if are_there("Python's http.server", &["curl", "python3"]) {
            checks.run("Python's http.server", apps.python()).await;
        }
        if are_there("PostgreSQL", &["postgres", "initdb", "psql"]) {
            checks.run("PostgreSQL", apps.postgres()).await;
        }
        if are_there("MariaDB", &["mariadbd", "mariadb-install-db", "mariadb"]) {
            checks.run("MariaDB", apps.mariadb()).await;
        }
        if are_there("SMTP", &["curl", "aiosmtpd"]) {
            checks.run("SMTP", apps.smtp()).await;
        }
        checks.assert_all_passed();
    });
}

struct Apps<'a> {
    mesh: &'a Mesh,
    /// The service's.
    addresses: [IpAddr; 2],
    dir: TempDir,
}

// === impl Apps ===

impl Apps<'_> {
    fn client(&self, program: &str, args: &[&str]) -> Result<String> {
        programs::run(self.mesh, "client", program, args)
    }

    async fn serve_nginx(&self) -> Result<ProcessHandle> {
        let dir = self.dir.path().join("nginx");
        fs::create_dir_all(dir.join("www"))?;
        fs::write(dir.join("www/hello"), "hello\n")?;
        fs::write(dir.join("www/large"), large())?;
        let [root, conf] = [&dir, &dir.join("nginx.conf")].map(|path| path.display().to_string());
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {root}/{kind};"))
            .join("\n");
        let text = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr;
             events {{}}
             http {{
               access_log off; client_max_body_size 0; {temp}
               server {{
                 listen {NGINX}; listen [::]:{NGINX};
                 listen {NGINX_H2C} http2; listen [::]:{NGINX_H2C} http2;
                 root {root}/www; dav_methods PUT DELETE;
               }}
             }}"
        );
        fs::write(&conf, text)?;
        serve(self.mesh, "server", None, "nginx", &["-c", &conf], NGINX).await
    }

    async fn nginx(&self) -> Result<()> {
        let _nginx = self.serve_nginx().await?;
        let (body, sent) = (self.file("body")?, self.file("sent")?);
        fs::write(&sent, large())?;
        let [body, sent] = [&body, &sent].map(|path| path.to_str().unwrap());
        let curl = |args: &[&str]| {
            let told = ["-sS", "--max-time", "20", "-o", body, "-w", TELL];
            self.client("curl", &[&told[..], args].concat())
        };
        for (address, (port, version, option)) in self.addresses.iter().flat_map(|address| {
            [
                (NGINX, "1.1", "--http1.1"),
                (NGINX, "1.1", "--http1.0"),
                (NGINX_H2C, "2", "--http2-prior-knowledge"),
            ]
            .map(|how| (address, how))
        }) {
            let url = |path: &str| at(*address, port, path);
            // nginx answers in the version it has, whatever it is asked in.
            let version = if option == "--http1.0" {
                "1.0 or 1.1"
            } else {
                version
            };
            let expect = |status: u16, told: &str| {
                let (code, spoken) = told.trim().split_once(' ').context("what curl tells")?;
                ensure!(
                    code == status.to_string() && version.contains(spoken),
                    "{told}"
                );
                anyhow::Ok(())
            };
            expect(200, &curl(&[option, &url("hello")])?)?;
            ensure!(fs::read(body)? == b"hello\n");
            expect(200, &curl(&[option, &url("large")])?)?;
            ensure!(
                fs::read(body)? == large(),
                "{} bytes",
                fs::read(body)?.len()
            );
            expect(206, &curl(&[option, "-r", "1-3", &url("hello")])?)?;
            ensure!(fs::read(body)? == b"ell");
            expect(404, &curl(&[option, &url("nothing")])?)?;
            if option == "--http1.0" {
                continue;
            }
            let new = url(&format!("new-{port}-{}", address.is_ipv4()));
            let put = curl(&[option, "-T", sent, "-H", "Expect: 100-continue", &new])?;
            expect(201, &put)?;
            expect(200, &curl(&[option, &new])?)?;
            ensure!(fs::read(body)? == large(), "what was put comes back");
            expect(204, &curl(&[option, "-X", "DELETE", &new])?)?;
            // As long as it is said nowhere: chunked, or DATA until END_STREAM.
            let piped = curl(&[option, "-T", "-", &new]);
            expect(201, &piped?)?;
            expect(204, &curl(&[option, "-X", "DELETE", &new])?)?;
        }
        Ok(())
    }

    /// Not one request may fail, whatever the server closes meanwhile.
    async fn generators(&self) -> Result<()> {
        let _nginx = self.serve_nginx().await?;
        for address in self.addresses {
            for (option, port) in [("--no-tls-proto=h2c", NGINX_H2C), ("--h1", NGINX)] {
                for (path, count) in [("hello", "4000"), ("large", "20")] {
                    // Of an address in IPv6 h2load makes an authority without brackets.
                    let host = ["-H", ":authority: shop.example"];
                    let host = &host[..if port == NGINX { 0 } else { 2 }];
                    let load = ["-n", count, "-c", "8", "-m", "10", "-t", "1", option];
                    let url = at(address, port, path);
                    let told = self.client("h2load", &[&load[..], host, &[&url]].concat())?;
                    let all = format!("{count} succeeded, 0 failed, 0 errored, 0 timeout");
                    ensure!(told.contains(&all), "{option} {url}: {told}");
                    let all = format!("status codes: {count} 2xx, 0 3xx, 0 4xx, 0 5xx");
                    ensure!(told.contains(&all), "{option} {url}: {told}");
                }
            }
            let url = at(address, NGINX, "hello");
            let told = self.client("wrk", &["-t", "1", "-c", "16", "-d", "2s", &url])?;
            ensure!(told.contains("Requests/sec"), "{told}");
            for trouble in ["Socket errors", "Non-2xx"] {
                ensure!(!told.contains(trouble), "{told}");
            }
        }
        Ok(())
    }

    /// Its answers end with their connections.
    async fn python(&self) -> Result<()> {
        let www = self.dir.path().join("python");
        fs::create_dir_all(&www)?;
        fs::write(www.join("large"), large())?;
        let (port, dir) = (PYTHON.to_string(), www.to_str().context("a path")?);
        let args = [
            "-m",
            "http.server",
            &port,
            "--bind",
            "::",
            "--directory",
            dir,
        ];
        let _python = serve(self.mesh, "server", None, "python3", &args, PYTHON).await?;
        let body = self.file("python-body")?;
        let body = body.to_str().context("a path")?;
        for address in self.addresses {
            let url = at(address, PYTHON, "large");
            // Twice: as if the connection had been kept.
            let args = [
                "-sS",
                "--max-time",
                "20",
                "-w",
                TELL,
                "-o",
                body,
                "-o",
                body,
                &url,
                &url,
            ];
            let told = self.client("curl", &args)?;
            ensure!(told.matches("200 ").count() == 2, "{told}");
            ensure!(fs::read(body)? == large());
            let listing = self.client("curl", &["-sS", &at(address, PYTHON, "")])?;
            ensure!(listing.contains("<a href=\"large\">"), "{listing}");
            let missing = at(address, PYTHON, "nothing");
            let told = self.client("curl", &["-sS", "-o", body, "-w", TELL, &missing])?;
            ensure!(told.starts_with("404 "), "{told}");
        }
        Ok(())
    }

    /// Asks for TLS in a few bytes of its own, and has it inside the mesh's.
    async fn postgres(&self) -> Result<()> {
        let data = self.dir.path().join("postgres");
        fs::create_dir_all(&data)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        chown(&data, Some(NOBODY), Some(NOBODY))?;
        let certificate = self.certify("db.example", &data)?;
        let dir = data.join("data");
        let dir = dir.to_str().context("a path")?;
        let initdb = program("initdb")?;
        let init =
            format!("-u nobody -- {initdb} -D {dir} -U postgres -A trust --no-sync --locale=C");
        let init: Vec<_> = init.split(' ').collect();
        programs::run(self.mesh, "server", "runuser", &init)?;
        let hba = "hostssl all all 0.0.0.0/0 trust\nhostssl all all ::/0 trust\n";
        fs::write(data.join("data/pg_hba.conf"), hba)?;
        let conf = format!(
            "listen_addresses = '*'\nunix_socket_directories = ''\nfsync = off\nssl = on\n\
             ssl_cert_file = '{0}/tls.pem'\nssl_key_file = '{0}/tls.key'\n",
            data.display()
        );
        fs::write(data.join("data/postgresql.auto.conf"), conf)?;
        let _postgres = serve(
            self.mesh,
            "server",
            Some(NOBODY),
            "postgres",
            &["-D", dir],
            POSTGRES,
        )
        .await?;
        for address in self.addresses {
            for port in [POSTGRES, POSTGRES_UNKNOWN] {
                let ask = |mode: &str, sql: &str| {
                    let to = format!(
                        "host=db.example hostaddr={address} port={port} user=postgres \
                         dbname=postgres connect_timeout=10 sslmode={mode} sslrootcert={}",
                        certificate.display()
                    );
                    self.client("psql", &["-X", "-t", "-A", "-d", &to, "-c", sql])
                };
                let encrypted = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
                // Nobody in between could show this certificate.
                for mode in ["require", "verify-full"] {
                    let told = ask(mode, encrypted)?;
                    ensure!(told.trim() == "t|TLSv1.3", "{mode}: {told}");
                }
                let rows = ask(
                    "require",
                    "select repeat('x', 99) from generate_series(1, 20000)",
                )?;
                ensure!(rows.len() == 100 * 20_000, "{} bytes", rows.len());
                // It has to be refused by the server, so it has to arrive there.
                let plain = ask("disable", "select 1").map_err(|error| error.to_string());
                ensure!(
                    plain
                        .clone()
                        .is_err_and(|said| said.contains("no encryption")),
                    "{plain:?}"
                );
            }
        }
        Ok(())
    }

    /// The server speaks first.
    async fn mariadb(&self) -> Result<()> {
        let dir = self.dir.path().join("mariadb");
        fs::create_dir_all(&dir)?;
        let data = format!("--datadir={}/data", dir.display());
        let install = [
            "--no-defaults",
            "--user=root",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
            &data,
        ];
        programs::run(self.mesh, "server", "mariadb-install-db", &install)?;
        let init = dir.join("init.sql");
        fs::write(
            &init,
            "create database shop;\ncreate user cart@'%' identified by 'secret';\n\
             grant all on shop.* to cart@'%';\n",
        )?;
        let args = [
            "--no-defaults",
            "--user=root",
            "--bind-address=*",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
            &format!("--init-file={}", init.display()),
            &format!("--socket={}/socket", dir.display()),
            &format!("--pid-file={}/pid", dir.display()),
            &data,
        ];
        let _mariadb = serve(self.mesh, "server", None, "mariadbd", &args, MARIADB).await?;
        for address in self.addresses {
            for port in [MARIADB, MARIADB_UNKNOWN] {
                let (host, port) = (address.to_string(), port.to_string());
                let sql = "create or replace table cart (n int, t longtext);\
                           insert into cart values (1, repeat('a', 1000000)), (2, 'b');\
                           select sum(n), sum(length(t)), max(t) from cart;";
                let args = [
                    "--no-defaults",
                    "-h",
                    &host,
                    "-P",
                    &port,
                    "-ucart",
                    "-psecret",
                    "--connect-timeout=10",
                    "-N",
                    "-B",
                    "-e",
                    sql,
                    "shop",
                ];
                let told = self.client("mariadb", &args)?;
                ensure!(told == "3\t1000001\tb\n", "{port}: {told}");
            }
        }
        Ok(())
    }

    /// So does this one.
    async fn smtp(&self) -> Result<()> {
        let mail = self.dir.path().join("mail");
        let mut servers = Vec::new();
        for any in ["0.0.0.0", "::"] {
            let listen = format!("{any}:{SMTP}");
            let mailbox = mail.to_str().context("a path")?;
            let args = [
                "-n",
                "-l",
                &listen,
                "-c",
                "aiosmtpd.handlers.Mailbox",
                mailbox,
            ];
            servers.push(serve(self.mesh, "server", None, "aiosmtpd", &args, SMTP).await?);
        }
        let local = (std::net::Ipv6Addr::LOCALHOST, SMTP).into();
        programs::listens(self.mesh.app("server"), local).await?;
        let letter = self.file("letter")?;
        let mut sent = 0;
        for address in self.addresses {
            for port in [SMTP, SMTP_UNKNOWN] {
                sent += 1;
                let text = format!(
                    "Subject: letter {sent}\r\n\r\n{}\r\n",
                    "hello \r\n".repeat(20_000)
                );
                fs::write(&letter, text)?;
                let url = at(address, port, "").replace("http:", "smtp:");
                let from = [
                    "--mail-from",
                    "cart@shop.example",
                    "--mail-rcpt",
                    "till@shop.example",
                ];
                let what = [
                    "-sS",
                    "--max-time",
                    "20",
                    "-T",
                    letter.to_str().context("a path")?,
                ];
                self.client("curl", &[&from[..], &what, &[&url]].concat())?;
                let arrived = fs::read_dir(mail.join("new"))?.count();
                ensure!(arrived == sent, "{arrived} letters of {sent}");
            }
        }
        for letter in fs::read_dir(mail.join("new"))? {
            let text = fs::read_to_string(letter?.path())?;
            ensure!(text.matches("hello ").count() == 20_000);
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.dir.path().join(name))
    }

    /// A certificate of its own for a server, to be read by nobody else than NOBODY.
    fn certify(&self, name: &str, dir: &Path) -> Result<PathBuf> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        let (certificate, key) = (dir.join("tls.pem"), dir.join("tls.key"));
        fs::write(&certificate, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        chown(&certificate, Some(NOBODY), Some(NOBODY))?;
        chown(&key, Some(NOBODY), Some(NOBODY))?;
        Ok(certificate)
    }
}

/// For thousands of requests on a slow machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);
/// What curl is to tell of an answer.
const TELL: &str = "%{http_code} %{http_version}\n";

fn at(address: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}/{path}", std::net::SocketAddr::new(address, port))
}

/// Three megabytes, no two pieces of which are alike.
fn large() -> Vec<u8> {
    (0..750_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn program(name: &str) -> Result<String> {
    let file = programs::find(name).with_context(|| format!("{name} is not installed"))?;
    Ok(file.display().to_string())
}

/// That others than root can reach into.
fn dir_for_all() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}
