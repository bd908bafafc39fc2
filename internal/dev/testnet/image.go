package testnet

import "maps"

// ImportBusybox makes an image of Busybox and further files, see [Daemon.Import].
func (d *Daemon) ImportBusybox(name string, more map[string]string, changes ...string) error {
	files, err := Busybox()
	if err != nil {
		return err
	}
	maps.Copy(files, more)
	return d.Import(name, files, changes...)
}
