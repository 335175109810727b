package nftables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Remove deletes the tables in the namespace that drivers of this kind keep, with all that is in them. What is not there is no
// error, nor is a kernel without nftables. No driver may be running.
func Remove(ctx context.Context) error {
	conn, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("remove nftables tables: %w", err)
	}
	defer func() { _ = conn.Close() }()
	var errs []error
	for _, family := range []nft.Family{nft.IP4, nft.IP6, nft.NetDev} {
		table := nft.Table{Family: family, Name: tableName}
		results, err := conn.Transact(ctx, unix.NFNL_SUBSYS_NFTABLES, []nlsock.Message{table.Delete()})
		for _, e := range append(results, err) {
			if e != nil && !errors.Is(e, unix.ENOENT) && !errors.Is(e, unix.EOPNOTSUPP) && !errors.Is(e, unix.EAFNOSUPPORT) {
				errs = append(errs, fmt.Errorf("remove nftables table %s: %w", table, e))
			}
		}
	}
	return errors.Join(errs...)
}
