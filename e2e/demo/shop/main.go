// Command shop is the demo's API: a small shop that keeps its items in a
// MariaDB (whose protocol lets the server speak first) and caches them in a
// Redis. It knows nothing of the mesh: plain TCP to plain addresses.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"
)

const cacheTime = 2 * time.Second

type item struct {
	Name  string `json:"name"`
	Price int    `json:"price"`
}

// answer is what GET /api/items returns.
type answer struct {
	Items []item `json:"items"`
	From  string `json:"from"`
	// Client is who the API sees as its caller.
	Client string `json:"client"`
}

type shop struct {
	db    *sql.DB
	cache *redis.Client
}

func main() {
	listen := flag.String("listen", ":8080", "address to serve HTTP on")
	dbAddr := flag.String("db", "", "address of the database, host:port")
	cacheAddr := flag.String("cache", "", "address of the cache, host:port")
	flag.Parse()
	if err := run(*listen, *dbAddr, *cacheAddr); err != nil {
		log.Fatal(err)
	}
}

func run(listen, dbAddr, cacheAddr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr, cfg.DBName, cfg.Timeout = "shop", "shop", "tcp", dbAddr, "shop", 3*time.Second
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return fmt.Errorf("configure database: %w", err)
	}
	s := &shop{db: sql.OpenDB(connector), cache: redis.NewClient(&redis.Options{Addr: cacheAddr, DialTimeout: 3 * time.Second, MaxRetries: 1})}
	defer s.db.Close()
	defer s.cache.Close()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/items", s.items)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe() }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	deadline, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(deadline); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *shop) items(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	items, from, err := s.find(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer{items, from, r.RemoteAddr}); err != nil {
		log.Printf("answer %s: %v", r.RemoteAddr, err)
	}
}

// find takes the items from the cache, or from the database into the cache.
func (s *shop) find(ctx context.Context) (items []item, from string, err error) {
	cached, err := s.cache.Get(ctx, "items").Bytes()
	if err == nil {
		if err := json.Unmarshal(cached, &items); err != nil {
			return nil, "", fmt.Errorf("read cached items: %w", err)
		}
		return items, "cache", nil
	}
	if !errors.Is(err, redis.Nil) {
		return nil, "", fmt.Errorf("ask cache: %w", err)
	}
	if items, err = s.query(ctx); err != nil {
		return nil, "", fmt.Errorf("ask database: %w", err)
	}
	encoded, err := json.Marshal(items)
	if err != nil {
		return nil, "", err
	}
	if err := s.cache.Set(ctx, "items", encoded, cacheTime).Err(); err != nil {
		return nil, "", fmt.Errorf("fill cache: %w", err)
	}
	return items, "database", nil
}

func (s *shop) query(ctx context.Context) ([]item, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT name, price FROM items ORDER BY name")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var items []item
	for rows.Next() {
		var i item
		if err := rows.Scan(&i.Name, &i.Price); err != nil {
			return nil, err
		}
		items = append(items, i)
	}
	return items, rows.Err()
}
