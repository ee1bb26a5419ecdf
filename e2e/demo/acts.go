package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Addresses of the demo's services and pods, as e2e/demo/mesh has them.
const (
	webService   = "10.96.0.10"
	apiService   = "10.96.0.11"
	cacheService = "10.96.0.12"
	dbService    = "10.96.0.13"
)

// up starts the mesh from a copy of the folder: an act will change it.
func (s *stage) up(ctx context.Context) error {
	if err := os.CopyFS(s.mesh, os.DirFS(filepath.Join(s.root, "e2e/demo/mesh"))); err != nil {
		return err
	}
	args := []string{"local", "up", "--name", s.name, "--file", s.mesh, "--create-pods"}
	out, err := s.heddle(ctx, args...)
	if err != nil {
		return err
	}
	shown("heddle "+strings.Join(args, " "), out, 30)
	out, err = s.heddle(ctx, "check", "--name", s.name)
	if err != nil {
		return err
	}
	shown("heddle check", out, 12)
	return nil
}

func (s *stage) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if s.capture != nil {
		s.stopCapture()
	}
	if _, err := s.heddle(ctx, "local", "down", "--name", s.name); err != nil {
		return err
	}
	left, err := filepath.Glob("/run/netns/heddle-" + s.name + "-*")
	if err != nil || len(left) > 0 {
		return fmt.Errorf("take the mesh away: left behind %v, %w", left, err)
	}
	return nil
}

func (s *stage) farewell() {
	fmt.Printf("\n%s in %.0f s; nothing is left behind. Next:\n", green("All of it held"), time.Since(s.started).Seconds())
	say("bin/heddle local up --name demo --file e2e/demo/mesh --create-pods    a mesh to play with")
	say("bin/heddle flows --name demo --follow                                 watch it")
	say("docs/configuration.md                                                 write your own")
}

// moveIn starts the shop's programs, each in its pod, and waits for them.
func (s *stage) moveIn(ctx context.Context) error {
	if err := s.startDatabase(ctx); err != nil {
		return err
	}
	if err := s.start("shop/cache", "redis-server", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", "", "--dir", s.scratch); err != nil {
		return err
	}
	if err := s.start("shop/api", s.binary("shop"), "-db", dbService+":3306", "-cache", cacheService+":6379"); err != nil {
		return err
	}
	if err := s.startWeb(); err != nil {
		return err
	}
	if err := s.start("legacy/fax", s.binary("shop"), "-listen", ":9100"); err != nil {
		return err
	}
	err := eventually(ctx, 20*time.Second, "the shop answers", func() error {
		_, err := s.get(ctx)
		return err
	})
	if err != nil {
		return err
	}
	held("customer → nginx (web) → api → redis (cache), mariadb (db): unchanged programs, each in a pod of its own")
	return nil
}

const schema = `CREATE DATABASE shop; USE shop;
CREATE TABLE items (name VARCHAR(40) PRIMARY KEY, price INT);
INSERT INTO items VALUES ('heddle', 12), ('reed', 30), ('shuttle', 18);
CREATE USER 'shop'@'%' IDENTIFIED BY 'shop'; GRANT ALL ON shop.* TO 'shop'@'%';`

func (s *stage) startDatabase(ctx context.Context) error {
	data, socket := filepath.Join(s.scratch, "db"), filepath.Join(s.scratch, "db.sock")
	install := exec.CommandContext(ctx, "mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+data, "--skip-test-db", "--auth-root-authentication-method=normal")
	if _, err := output(install); err != nil {
		return err
	}
	if err := s.start("shop/db", "mariadbd", "--no-defaults", "--user=root", "--datadir="+data, "--socket="+socket,
		"--bind-address=0.0.0.0", "--port=3306", "--skip-name-resolve", "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"); err != nil {
		return err
	}
	return eventually(ctx, 30*time.Second, "the database starts", func() error {
		client := exec.CommandContext(ctx, "mariadb", "--no-defaults", "--socket="+socket, "--user=root")
		client.Stdin = strings.NewReader(schema)
		_, err := output(client)
		return err
	})
}

func (s *stage) startWeb() error {
	config := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/nginx-error.log;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[1]s/nginx-body; proxy_temp_path %[1]s/nginx-proxy; fastcgi_temp_path %[1]s/nginx-fastcgi;
  uwsgi_temp_path %[1]s/nginx-uwsgi; scgi_temp_path %[1]s/nginx-scgi;
  server {
    listen 80; listen [::]:80;
    location / { return 200 "Welcome to the shop, $remote_addr\n"; }
    location /api/ { proxy_pass http://%[2]s:8080; }
  }
}`, s.scratch, apiService)
	path := filepath.Join(s.scratch, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	return s.start("shop/web", "nginx", "-e", filepath.Join(s.scratch, "nginx-error.log"), "-c", path)
}

// get buys nothing, but looks at what there is.
func (s *stage) get(ctx context.Context) (string, error) {
	return output(s.inPod(ctx, "shop/customer", "curl", "-sS", "--fail-with-body", "--max-time", "3", "http://"+webService+"/api/items"))
}

func (s *stage) shopping(ctx context.Context) error {
	if err := s.startCapture(ctx); err != nil {
		return err
	}
	welcome, err := output(s.inPod(ctx, "shop/customer", "curl", "-sS", "--max-time", "3", "http://"+webService+"/"))
	if err != nil {
		return err
	}
	shown("curl http://"+webService+"/   (in the customer's pod, on the other node)", welcome, 2)
	if !strings.Contains(welcome, "10.244.2.20") {
		return fmt.Errorf("nginx saw another client than the customer's own address: %s", welcome)
	}
	held("nginx sees the customer's own address, through the tunnel")
	items, err := s.get(ctx)
	if err != nil {
		return err
	}
	shown("curl http://"+webService+"/api/items", items, 2)
	if !strings.Contains(items, "shuttle") {
		return fmt.Errorf("the shop answered %q", items)
	}
	for range 20 {
		if _, err := s.get(ctx); err != nil {
			return err
		}
	}
	held("20 more of them, from the cache and from the database")
	return s.showFlows(ctx, 10, "--last", "10")
}

func (s *stage) showFlows(ctx context.Context, limit int, args ...string) error {
	out, err := s.heddle(ctx, append([]string{"flows", "--name", s.name}, args...)...)
	if err != nil {
		return err
	}
	shown("heddle flows "+strings.Join(args, " "), out, limit+1)
	return nil
}

// policy denies the batch job what it could do a moment before.
func (s *stage) policy(ctx context.Context) error {
	query := func() error {
		_, err := output(s.inPod(ctx, "shop/batch", "mariadb", "--no-defaults", "--connect-timeout=3", "-h", dbService, "-ushop", "-pshop", "shop", "-e", "SELECT 1"))
		return err
	}
	if err := query(); err != nil {
		return fmt.Errorf("before the policy the batch job must get through: %w", err)
	}
	held("before: the batch job reads the database")
	name := "db-only-api.yaml"
	data, err := os.ReadFile(filepath.Join(s.root, "e2e/demo/policies", name))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.mesh, name), data, 0o644); err != nil {
		return err
	}
	applied := time.Now()
	err = eventually(ctx, 5*time.Second, "the policy holds", func() error {
		if query() == nil {
			return errors.New("the batch job still gets through")
		}
		return nil
	})
	if err != nil {
		return err
	}
	held("after: refused, %.1f s after the file was written; the API still gets through", time.Since(applied).Seconds())
	time.Sleep(cacheExpires)
	if _, err := s.get(ctx); err != nil {
		return err
	}
	out, err := s.heddle(ctx, "flows", "--name", s.name, "--last", "50", "--verdict", "deny", "-o", "json")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "PolicyNoMatch") {
		return fmt.Errorf("no flow says PolicyNoMatch: %s", out)
	}
	return s.showFlows(ctx, 4, "--last", "4", "--verdict", "deny")
}

// cacheExpires is longer than the API keeps items in the cache.
const cacheExpires = 2100 * time.Millisecond

// attack has the command line try the ways around a pod's gate.
func (s *stage) attack(ctx context.Context) error {
	out, err := s.heddle(ctx, "prove", "--name", s.name, "--attack", "shop/web")
	if err != nil {
		shown("heddle prove --attack shop/web", out, 60)
		return err
	}
	shown("heddle prove --attack shop/web", out, 12)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	held("%s", lines[len(lines)-1])
	return nil
}

// prove shows the kernel's counters.
func (s *stage) prove(ctx context.Context) error {
	out, err := s.heddle(ctx, "prove", "--name", s.name)
	if err != nil {
		return err
	}
	shown("heddle prove", out, 24)
	return nil
}

// agentPID finds the process of a node's agent.
func (s *stage) agentPID(ctx context.Context, node string) (int, error) {
	out, err := s.heddle(ctx, "local", "status", "--name", s.name, "-o", "json")
	if err != nil {
		return 0, err
	}
	var status struct {
		Nodes []struct {
			Name  string `json:"name"`
			Agent struct {
				PID int `json:"pid"`
			} `json:"agent"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return 0, fmt.Errorf("read status: %w", err)
	}
	for _, n := range status.Nodes {
		if n.Name == node && n.Agent.PID > 1 {
			return n.Agent.PID, nil
		}
	}
	return 0, fmt.Errorf("no agent of node %s in %s", node, out)
}
