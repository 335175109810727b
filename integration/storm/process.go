package storm

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/integration/process"
)

// etcd is a real one, with one member.
type etcd struct {
	*process.Process
	url     string
	address string
}

func newEtcd(dir string) (*etcd, error) {
	p, address, err := process.Etcd(dir,
		"--unsafe-no-fsync", // processes are killed here, not machines, whose disks may be slow
		"--quota-backend-bytes", strconv.Itoa(4<<30), "--auto-compaction-mode", "revision", "--auto-compaction-retention", "100000")
	return &etcd{Process: p, url: "http://" + address, address: address}, err
}

// raw runs a request of etcd's own client.
func (e *etcd) raw(ctx context.Context, do func(context.Context, *clientv3.Client) error) error {
	conn, err := clientv3.New(clientv3.Config{Endpoints: []string{e.url}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return do(ctx, conn)
}

// revision is where the datastore is.
func (e *etcd) revision(ctx context.Context) (revision int64, err error) {
	err = e.raw(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, "/storm")
		if err == nil {
			revision = got.Header.Revision
		}
		return err
	})
	return revision, err
}

// compact forgets the history up to a revision.
func (e *etcd) compact(ctx context.Context, revision int64) error {
	return e.raw(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Compact(ctx, revision, clientv3.WithCompactPhysical())
		return err
	})
}

// ask gets a page of a process's health server.
func ask(ctx context.Context, address, page string) (text string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return process.Get(ctx, "http://"+address+page)
}
