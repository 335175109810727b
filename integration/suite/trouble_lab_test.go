//go:build lab

package suite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/integration/lab"
)

// troubles are what goes wrong with the datastore and between processes that live.
type troubles struct {
	*cluster
	t      *testing.T
	random *rand.Rand
	ctx    context.Context // ends them
	always context.Context // in which each is taken back, however the test ends
	etcd   *clientv3.Client
	stop   context.CancelFunc
	all    sync.WaitGroup

	mu    sync.Mutex // guards count
	count map[string]int
}

// trouble begins to freeze etcd, typha or a felix, to cut a node off from typha, and to have etcd killed, compacted or full: one after
// the other in random order, and each for a while.
func (c *cluster) trouble(t *testing.T, random *rand.Rand) *troubles {
	t.Helper()
	tr := &troubles{cluster: c, t: t, random: random, count: map[string]int{}, always: context.WithoutCancel(t.Context())}
	tr.ctx, tr.stop = context.WithCancel(t.Context())
	tr.etcd = c.etcdClient(t)
	t.Cleanup(tr.end)
	kinds := map[string]func(node string) error{
		"etcd frozen":    func(string) error { return tr.freeze(etcd) },
		"typha frozen":   func(string) error { return tr.freeze(typha) },
		"felix frozen":   func(node string) error { return tr.freeze(victim{node, lab.ProcessFelix}) },
		"node cut off":   tr.cut,
		"etcd killed":    func(string) error { return tr.killEtcd() },
		"etcd compacted": func(string) error { return tr.compactEtcd() },
		"etcd full":      func(string) error { return tr.fillEtcd() },
	}
	names := slices.Sorted(maps.Keys(kinds))
	tr.all.Go(func() {
		for i := 0; tr.ctx.Err() == nil; i++ {
			if i%len(names) == 0 { // each of them comes before one does again
				random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			}
			name, node := names[i%len(names)], c.topology.Nodes[random.IntN(len(c.topology.Nodes))].Name
			if err := kinds[name](node); err != nil {
				t.Errorf("%s, %s: %v", name, node, err)
			}
			tr.mu.Lock()
			tr.count[name]++
			tr.mu.Unlock()
			tr.upTo(8 * stormMoment)
		}
	})
	return tr
}

// end waits until the last one is over.
func (tr *troubles) end() {
	tr.stop()
	tr.all.Wait()
}

// String says how often there was what.
func (tr *troubles) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var list []string
	for _, name := range slices.Sorted(maps.Keys(tr.count)) {
		list = append(list, fmt.Sprintf("%s %d", name, tr.count[name]))
	}
	return strings.Join(list, ", ")
}

func (tr *troubles) upTo(d time.Duration) {
	await(tr.ctx, time.Duration(tr.random.Int64N(int64(bound(d)))))
}

func (tr *troubles) freeze(v victim) error {
	if err := tr.Signal(tr.always, v.node, v.process, syscall.SIGSTOP); err != nil {
		return nil //nolint:nilerr // it is dead just now
	}
	tr.upTo(4 * stormMoment)
	_ = tr.Signal(tr.always, v.node, v.process, syscall.SIGCONT) // or it was killed meanwhile
	return nil
}

func (tr *troubles) cut(node string) error {
	if _, err := tr.Run(tr.always, node, "nft", "add table inet trouble;"+
		"add chain inet trouble to {type filter hook output priority 0;}; add rule inet trouble to tcp dport 5473 drop;"+
		"add chain inet trouble from {type filter hook input priority 0;}; add rule inet trouble from tcp sport 5473 drop"); err != nil {
		return err
	}
	tr.upTo(8 * stormMoment)
	_, err := tr.Run(tr.always, node, "nft", "delete table inet trouble")
	return err
}

func (tr *troubles) killEtcd() error {
	if err := tr.Kill(tr.always, etcd.node, etcd.process); err != nil {
		return err
	}
	tr.upTo(2 * stormMoment)
	return tr.Start(tr.always, etcd.node, etcd.process)
}

// compactEtcd has etcd forget all history, so that who followed it and is behind has to read everything, and put its file in order.
func (tr *troubles) compactEtcd() error {
	ctx, cancel := context.WithTimeout(tr.always, patience)
	defer cancel()
	got, err := tr.etcd.Get(ctx, stormKey)
	if err != nil {
		return err
	}
	if _, err := tr.etcd.Compact(ctx, got.Header.Revision); err != nil {
		return err
	}
	_, err = tr.etcd.Defragment(ctx, tr.etcd.Endpoints()[0])
	return err
}

// fillEtcd has etcd refuse whatever would take space, as when its quota or its disk is used up.
func (tr *troubles) fillEtcd() error {
	ctx, cancel := context.WithTimeout(tr.always, patience)
	defer cancel()
	status, err := tr.etcd.Status(ctx, tr.etcd.Endpoints()[0])
	if err != nil {
		return err
	}
	full := &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: status.Header.MemberId, Alarm: etcdserverpb.AlarmType_NOSPACE,
	}
	if _, err := etcdserverpb.NewMaintenanceClient(tr.etcd.ActiveConnection()).Alarm(ctx, full, grpc.WaitForReady(true)); err != nil {
		return err
	}
	_, refused := tr.etcd.Put(ctx, stormKey, "")
	if !errors.Is(refused, rpctypes.ErrNoSpace) {
		err = fmt.Errorf("etcd is not full, and answers a write with: %v", refused) //nolint:errorlint // it may be nil
	}
	tr.upTo(4 * stormMoment)
	_, mended := tr.etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	return errors.Join(err, mended)
}

// stormKey is of no object.
const stormKey = "/storm"

// etcdClient speaks with the cluster's etcd from its own node.
func (c *cluster) etcdClient(t *testing.T) *clientv3.Client {
	t.Helper()
	address := netip.AddrPortFrom(c.topology.Nodes[0].Addresses[0], 2379)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://" + address.String()}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return c.Dial(ctx, etcd.node, address)
		})},
	})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// inTime does what a user does, who tries again when told that the datastore cannot be reached or is full.
func inTime(do func() error) error {
	for begin := time.Now(); ; time.Sleep(glance) {
		err := do()
		if err == nil || time.Since(begin) > patience {
			return err
		}
		if said := err.Error(); !strings.Contains(said, datastore.ErrUnavailable.Error()) && !strings.Contains(said, datastore.ErrFull.Error()) {
			return err
		}
	}
}
