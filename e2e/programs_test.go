package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// runInPod starts a server in a pod and stops it at the test's end.
func runInPod(t *testing.T, b *testbed.Bed, pod string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := b.Command(ctx, pod, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s in %s: %v", args[0], pod, err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed: its status says nothing
		if t.Failed() {
			t.Logf("%s in %s said: %s", args[0], pod, out.String())
		}
	})
}

// clientInPod runs a client in a pod until it succeeds.
func clientInPod(t *testing.T, b *testbed.Bed, pod string, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	testenv.Eventually(t, 20*time.Second, strings.Join(args, " "), func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		out, err = b.Command(ctx, pod, args...).CombinedOutput()
		if err != nil {
			t.Logf("%s: %v: %s", args[0], err, out)
		}
		return err == nil
	})
	return string(out)
}

func nginx(t *testing.T, b *testbed.Bed) {
	dir := t.TempDir()
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid;
events {} http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f;
uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; server { listen 80; listen [::]:80; location / { return 200 "%[2]s for $remote_addr\n"; } } }`, dir, secret)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	runInPod(t, b, "shop/server", "nginx", "-e", filepath.Join(dir, "error.log"), "-c", path)
	for _, url := range []string{"http://10.96.0.10/", "http://10.244.2.10/", "http://[fd00:244:2::10]/"} {
		out := clientInPod(t, b, "shop/client", "curl", "-sS", "--fail", "--max-time", "5", url)
		if !strings.Contains(out, secret) || !strings.Contains(out, "10.244.1.10") && !strings.Contains(out, "fd00:244:1::10") {
			t.Errorf("curl %s: %q", url, out)
		}
	}
}

func redis(t *testing.T, b *testbed.Bed) {
	runInPod(t, b, "shop/server", "redis-server", "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", "", "--dir", t.TempDir())
	cli := func(args ...string) string {
		return strings.TrimSpace(clientInPod(t, b, "shop/client", append([]string{"redis-cli", "-h", "10.244.2.10"}, args...)...))
	}
	if got := cli("SET", "k", secret); got != "OK" {
		t.Errorf("SET: %q", got)
	}
	if got := cli("GET", "k"); got != secret {
		t.Errorf("GET: %q", got)
	}
	out := clientInPod(t, b, "shop/client", "redis-benchmark", "-h", "10.244.2.10", "-n", "2000", "-c", "20", "-P", "4", "-q", "-t", "set,get,lpush")
	if strings.Contains(strings.ToLower(out), "error") || !strings.Contains(out, "requests per second") {
		t.Errorf("redis-benchmark: %s", out)
	}
}

// TestDatabases: two protocols in which the server speaks first, or negotiates.
func TestDatabases(t *testing.T) {
	b := up(t, "e2e-db")
	mariadb(t, b)
	postgres(t, b)
}

func mariadb(t *testing.T, b *testbed.Bed) {
	dir, err := os.MkdirTemp("", "heddle-db") // its path must be short enough for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if out, err := exec.Command("mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+dir+"/data", "--skip-test-db",
		"--auth-root-authentication-method=normal").CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v: %s", err, out)
	}
	runInPod(t, b, "shop/server", "mariadbd", "--no-defaults", "--user=root", "--datadir="+dir+"/data", "--socket="+dir+"/s", "--bind-address=0.0.0.0",
		"--skip-name-resolve", "--innodb-buffer-pool-size=16M")
	client := []string{"mariadb", "--no-defaults", "--socket=" + dir + "/s", "--user=root", "-e",
		"CREATE DATABASE d; CREATE USER 'u'@'10.244.1.10' IDENTIFIED BY 'p'; GRANT ALL ON d.* TO 'u'@'10.244.1.10'"}
	testenv.Eventually(t, 30*time.Second, "mariadb starts", func() bool { return exec.Command(client[0], client[1:]...).Run() == nil })
	// The account is bound to the client's own address: it works only if that arrives.
	out := clientInPod(t, b, "shop/client", "mariadb", "--no-defaults", "-h", "10.244.2.10", "-uu", "-pp", "d", "-N", "-e",
		"CREATE TABLE t (v LONGTEXT); INSERT INTO t VALUES (REPEAT('"+secret+"', 10000)); SELECT LENGTH(v), CURRENT_USER() FROM t")
	if !strings.Contains(out, fmt.Sprint(10000*len(secret))) || !strings.Contains(out, "u@10.244.1.10") {
		t.Errorf("mariadb: %q", out)
	}
}

// postgres runs on IPv6, as the program's own user: it refuses to be root.
func postgres(t *testing.T, b *testbed.Bed) {
	server, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(server) == 0 {
		t.Fatalf("no PostgreSQL server: run `make deps` (%v)", err)
	}
	programs := filepath.Dir(server[len(server)-1])
	dir, err := os.MkdirTemp("", "heddle-pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	asOwner := []string{"setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"} // becomes the program, unlike runuser
	if out, err := exec.Command("chown", "postgres", dir).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v: %s", err, out)
	}
	data := filepath.Join(dir, "data")
	if out, err := exec.Command(asOwner[0], append(asOwner[1:], filepath.Join(programs, "initdb"), "-D", data, "--no-sync", "-A", "trust")...).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	// Only the client's own address may come in.
	access := "host all postgres fd00:244:1::10/128 trust\n"
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(access), 0o644); err != nil {
		t.Fatal(err)
	}
	runInPod(t, b, "shop/server", append(asOwner, filepath.Join(programs, "postgres"), "-D", data, "-c", "listen_addresses=*",
		"-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "shared_buffers=16MB")...)
	out := clientInPod(t, b, "shop/client", "psql", "-h", "fd00:244:2::10", "-U", "postgres", "-d", "postgres", "-X", "-A", "-t", "-c",
		"SELECT length(repeat('"+secret+"', 10000)), inet_client_addr()")
	if want := fmt.Sprintf("%d|fd00:244:1::10", 10000*len(secret)); !strings.Contains(out, want) {
		t.Errorf("psql: %q, want %q", out, want)
	}
}
