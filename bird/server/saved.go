package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/bird/speaker"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// Names of the files in the directory, and how often the second is written at most.
const (
	configFile  = "bird-applied.pb"
	routesFile  = "bird-routes.json"
	routesPause = time.Second
)

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Saved keeps on disk what a restarted bird needs: the configuration, with its passwords, and felix's routes. Both files are
// root's only and are replaced atomically.
type Saved struct {
	dir   string
	boot  string // id of this boot: after another one the routes are in no kernel
	touch chan struct{}
}

// OpenSaved prepares the directory.
func OpenSaved(dir string) (*Saved, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for saved state: %w; set another by --lib-dir", err)
	}
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return nil, fmt.Errorf("boot id: %w", err)
	}
	return &Saved{dir: dir, boot: strings.TrimSpace(string(boot)), touch: make(chan struct{}, 1)}, nil
}

// Config returns the configuration, nil if there is none.
func (s *Saved) Config() (*birdv1.Config, error) {
	path := filepath.Join(s.dir, configFile)
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(body) < sha256.Size || sha256.Sum256(body[sha256.Size:]) != [sha256.Size]byte(body[:sha256.Size]) {
		return nil, fmt.Errorf("%s is damaged: its checksum does not fit", path)
	}
	m := &birdv1.Config{}
	if err := proto.Unmarshal(body[sha256.Size:], m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// SetConfig saves the configuration.
func (s *Saved) SetConfig(m *birdv1.Config) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	return s.write(configFile, append(sum[:], body...))
}

type savedRoutes struct {
	Boot   string               `json:"boot"`
	Routes []speaker.LocalRoute `json:"routes"`
}

// Routes returns felix's routes. It is nil if none were saved since the machine started: then the kernel has none either.
func (s *Saved) Routes() ([]speaker.LocalRoute, error) {
	path := filepath.Join(s.dir, routesFile)
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var saved savedRoutes
	if err := json.Unmarshal(body, &saved); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if saved.Boot != s.boot {
		return nil, nil
	}
	return append([]speaker.LocalRoute{}, saved.Routes...), nil
}

// Touch says that felix's routes have changed.
func (s *Saved) Touch() {
	select {
	case s.touch <- struct{}{}:
	default:
	}
}

// Run writes felix's routes after they changed, until ctx ends.
func (s *Saved) Run(ctx context.Context, log *slog.Logger, routes func() []speaker.LocalRoute) error {
	pause := time.NewTicker(routesPause)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.touch:
		}
		body, err := json.Marshal(savedRoutes{Boot: s.boot, Routes: routes()})
		if err == nil {
			err = s.write(routesFile, body)
		}
		if err != nil {
			log.Warn("own routes are not saved; a restart without felix would lose them", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

// write replaces a file: it holds the old or the new content, whole, whatever happens.
func (s *Saved) write(name string, body []byte) (err error) {
	f, err := os.CreateTemp(s.dir, "."+name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("saving %s: %w", filepath.Join(s.dir, name), err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(s.dir, name))
}
