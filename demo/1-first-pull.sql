-- The till.  It has sold before: some of head office's goods are here already,
-- under other keys and at old prices, and one that only this shop has.
SELECT count(*) FILTER (WHERE sku LIKE 'P%') AS known_goods,
	count(*) FILTER (WHERE sku NOT LIKE 'P%') AS own_goods
FROM product;

CREATE EXTENSION possync;
CREATE SERVER hq FOREIGN DATA WRAPPER possync_postgres
	OPTIONS (host '127.0.0.1', port :'office_port', dbname 'shop');
CREATE USER MAPPING FOR CURRENT_USER SERVER hq
	OPTIONS (user 'till_17', password :'password');

-- Products, with everything they depend on and what belongs to them ...
SELECT * FROM possync_add_model('product', server => 'hq');

-- ... and the price lists, whose lines point to products.
SELECT * FROM possync_add_model('price_list', server => 'hq');

-- What will be copied, how rows are recognised, and why:
SELECT * FROM possync_tree('product');

-- No constraint tells what makes a unit unique.  We know: it is recognised by
-- its symbol, instead of being made a second time.
SELECT possync_set_field('unit', 'symbol', match => true);

-- What would happen?
\x on
SELECT status, rows_read, rows_created, rows_matched, rows_updated, rows_left_out
FROM possync_pull('product', dry_run => true);

-- Let it happen.  What the till had is matched; of that, what differs is updated.
SELECT status, rows_read, rows_created, rows_matched, rows_updated, rows_left_out,
	bytes_received
FROM possync_pull('product');

SELECT status, rows_read, rows_created, rows_matched, rows_updated, rows_left_out
FROM possync_pull('price_list');

-- Once more: nothing to do.  Tables without a change column (tax, and the
-- categories of units) are read every time and compared.
SELECT status, rows_read, rows_created, rows_updated FROM possync_pull('product');
