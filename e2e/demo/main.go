// Command demo shows Heddle doing its job: a small shop of real programs in a
// mesh of two nodes on this machine. It drives bin/heddle as a person would, and
// exits with 0 only if everything that it claims held.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	root := flag.String("root", ".", "folder of the checkout, with bin/ built")
	keep := flag.Bool("keep", false, "leave the mesh running at the end, to look around")
	name := flag.String("name", "demo", "name of the local mesh")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root, *name, *keep); err != nil {
		fmt.Fprintf(os.Stderr, "\n%s %v\n", red("demo failed:"), err)
		os.Exit(1)
	}
}

// run plays the acts in order, and takes everything away whatever happens.
func run(ctx context.Context, root, name string, keep bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	scratch, err := os.MkdirTemp("", "heddle-demo-")
	if err != nil {
		return err
	}
	s := &stage{root: root, name: name, scratch: scratch, mesh: filepath.Join(scratch, "mesh"), started: time.Now()}
	defer func() {
		if keep && err == nil {
			say("The mesh is left running; its folder is %s. Take it away with: bin/heddle local down --name %s", s.mesh, name)
			return
		}
		s.stopPrograms()
		if downErr := s.down(); err == nil {
			err = downErr
		}
		if removeErr := os.RemoveAll(scratch); err == nil {
			err = removeErr
		}
		if err == nil {
			s.farewell()
		}
	}()
	acts := []struct {
		title string
		play  func(context.Context) error
	}{
		{"Two nodes, an operator, and pods", s.up},
		{"A shop moves in: nginx, an API, redis, mariadb", s.moveIn},
		{"A customer shops", s.shopping},
		{"What the wire carried", s.wire},
		{"A policy: the database is for the API only", s.policy},
		{"A pod with NET_ADMIN and NET_RAW tries to get around it", s.attack},
		{"An agent is killed", s.kill},
		{"What the kernel counted", s.prove},
	}
	for i, act := range acts {
		heading(i+1, len(acts), act.title)
		if err := act.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
	}
	return nil
}
