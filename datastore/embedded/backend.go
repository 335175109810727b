package embedded

import (
	"context"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/open"
)

// Backend lets open.Open open embedded datastores. Only a program that is to run one passes it.
func Backend() open.Backend {
	return open.Backend{
		Type: open.TypeEmbedded,
		Open: func(ctx context.Context, cfg open.Config) (datastore.Client, error) {
			c, err := Open(ctx, Config{
				Dir: cfg.Directory, Listen: cfg.Listen,
				CertFile: cfg.EtcdCertFile, KeyFile: cfg.EtcdKeyFile, CAFile: cfg.EtcdCAFile,
				Logger: cfg.Logger,
			})
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
}
