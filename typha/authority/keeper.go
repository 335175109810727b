package authority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/muslin-net/muslin/internal/rpc"
)

// lookEvery is how often the serving certificate is looked at. Wall clocks jump, so it is not waited for its end.
const lookEvery = time.Minute

// Keeper keeps the files.
type Keeper struct {
	dir   string
	names Names
	log   *slog.Logger

	mu sync.Mutex // guards ca, and the files
	ca CA
}

// NewKeeper returns a keeper of a directory, which is made if it is missing. Take must be called before the files are of use.
func NewKeeper(dir string, names Names, log *slog.Logger) (*Keeper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("setting pki-dir: %w; give a directory that typha may write to, best in memory", err)
	}
	return &Keeper{dir: dir, names: names, log: log}, nil
}

// Files are the paths of the certificates to trust, and of typha's own certificate and key.
func (k *Keeper) Files() rpc.Files {
	return rpc.Files{CA: k.path("ca.crt"), Cert: k.path("tls.crt"), Key: k.path("tls.key")}
}

// CAKey is the path of the CA's key.
func (k *Keeper) CAKey() string { return k.path("ca.key") }

func (k *Keeper) path(name string) string { return filepath.Join(k.dir, name) }

// Take makes a CA the present one. One that is damaged is an error, and changes nothing.
func (k *Keeper) Take(ca CA) error {
	if _, _, err := ca.Signer(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if bytes.Equal(ca.Certs, k.ca.Certs) && bytes.Equal(ca.Key, k.ca.Key) {
		return nil
	}
	// The certificates come first: what is signed with the new key must be trusted.
	if err := errors.Join(k.write("ca.crt", ca.Certs), k.write("ca.key", ca.Key)); err != nil {
		return err
	}
	k.ca = ca
	return k.renew(time.Now())
}

// Run replaces the serving certificate in time, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			k.mu.Lock()
			err := k.renew(now)
			k.mu.Unlock()
			if err != nil {
				k.log.Warn("typha's certificate is not replaced, trying again", "error", err)
			}
		}
	}
}

// renew replaces the serving certificate if it is time. The caller holds mu.
func (k *Keeper) renew(now time.Time) error {
	have, err := os.ReadFile(k.path("tls.crt"))
	if err == nil && !k.ca.due(have, now) {
		return nil
	}
	cert, key, err := k.ca.Serving(k.names, now)
	if err != nil {
		return err
	}
	// Who reads between the two finds a pair that does not fit, refuses that one connection, and is asked again.
	if err := errors.Join(k.write("tls.key", key), k.write("tls.crt", cert)); err != nil {
		return err
	}
	k.log.Info("typha has a new certificate", "names", k.names.DNS, "until", now.Add(servingLife-backdate).UTC())
	return nil
}

// write replaces a file: at every moment there is the old one or the new one.
func (k *Keeper) write(name string, body []byte) error {
	fresh := k.path(name + ".new")
	err := os.WriteFile(fresh, body, 0o600)
	if err == nil {
		err = os.Rename(fresh, k.path(name))
	}
	if err != nil {
		return fmt.Errorf("setting pki-dir: %w", err)
	}
	return nil
}
