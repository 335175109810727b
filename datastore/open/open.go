// Package open turns settings into a datastore client: from the environment, or from the file calicoctl reads, both with
// Calico's names. It owns those names and the choice of the backend; it refuses the backends' own business.
//
// The backends etcd and kubernetes are always there. Others are given by the program that wants to carry them (embedded.Backend), so that
// a small tool does not link a whole etcd server.
package open

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/datastore/kubernetes"
)

// The values of Config.Type.
const (
	TypeEtcd       = "etcdv3"
	TypeKubernetes = "kubernetes"
	TypeEmbedded   = "embedded"
)

// Backend is a kind of datastore a program can open besides those that are always there.
type Backend struct {
	Type string
	Open func(ctx context.Context, cfg Config) (datastore.Client, error)
}

// Open returns a client of the datastore cfg describes. It checks the settings but does not wait for the datastore to
// answer; Ready does. The caller closes the client. Wrap it with datastore.Validating before writing to it.
func Open(ctx context.Context, cfg Config, more ...Backend) (datastore.Client, error) {
	switch cfg.Type {
	case TypeEtcd:
		ec, err := cfg.etcd()
		if err != nil {
			return nil, err
		}
		c, err := etcd.New(ctx, ec)
		if err != nil {
			return nil, err
		}
		return c, nil
	case TypeKubernetes:
		c, err := kubernetes.New(cfg.Kubernetes())
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if i := slices.IndexFunc(more, func(b Backend) bool { return b.Type == cfg.Type }); i >= 0 {
		return more[i].Open(ctx, cfg)
	}
	if cfg.Type == TypeEmbedded {
		return nil, fmt.Errorf("datastore type %q (DATASTORE_TYPE): an embedded datastore belongs to the process that runs it; use %q here, with ETCD_ENDPOINTS set to the address it listens on", cfg.Type, TypeEtcd)
	}
	return nil, fmt.Errorf("datastore type %q (DATASTORE_TYPE) is unknown; use one of %s", cfg.Type,
		strings.Join([]string{TypeEtcd, TypeKubernetes, TypeEmbedded}, ", "))
}
