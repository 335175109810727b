package storm

import (
	"cmp"
	"context"
	"strconv"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/integration/process"
)

// etcd is a real one. Its first member is the one that runs, stops and is ended where there is one alone.
type etcd struct {
	*process.Process
	members   []*process.Process
	addresses []string // of the members
}

func newEtcd(dir string, members int, quota int64) (*etcd, error) {
	list, addresses, err := process.EtcdMembers(dir, max(1, members),
		"--unsafe-no-fsync", // processes are killed here, not machines, whose disks may be slow
		"--quota-backend-bytes", strconv.FormatInt(cmp.Or(quota, 4<<30), 10), "--auto-compaction-mode", "revision", "--auto-compaction-retention", "100000")
	if err != nil {
		return nil, err
	}
	return &etcd{Process: list[0], members: list, addresses: addresses}, nil
}

// startAll starts all members.
func (e *etcd) startAll() error {
	for _, m := range e.members {
		if err := m.Start(); err != nil {
			return err
		}
	}
	return nil
}

// endAll kills all members.
func (e *etcd) endAll() {
	for _, m := range e.members {
		m.End(syscall.SIGKILL)
	}
}

// urls are where the members are reached.
func (e *etcd) urls() (list []string) {
	for _, a := range e.addresses {
		list = append(list, "http://"+a)
	}
	return list
}

// raw runs a request of etcd's own client.
func (e *etcd) raw(ctx context.Context, do func(context.Context, *clientv3.Client) error) error {
	conn, err := clientv3.New(clientv3.Config{Endpoints: e.urls(), Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return do(ctx, conn)
}

// leader is the number of the member that leads, as all members say; -1 if they do not, or not all of them answer.
func (e *etcd) leader(ctx context.Context) int {
	numbers, said := map[uint64]int{}, map[uint64]bool{}
	for i, url := range e.urls() {
		err := e.raw(ctx, func(ctx context.Context, c *clientv3.Client) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			s, err := c.Status(ctx, url)
			if err == nil {
				numbers[s.Header.MemberId] = i
				said[s.Leader] = true
			}
			return err
		})
		if err != nil {
			return -1
		}
	}
	for id, number := range numbers {
		if said[id] && len(said) == 1 {
			return number
		}
	}
	return -1
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
